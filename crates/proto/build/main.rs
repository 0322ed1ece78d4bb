//! Generates the Rust of `proto/*.proto`, without `protoc`:
//!
//! | file in `OUT_DIR` | content |
//! |---|---|
//! | `descriptors.bin` | every file and what it imports, extension options included |
//! | `<package>.rs` | messages, clients, servers |
//! | `<package>.debug.rs` | `Debug` of each of its types, secrets hidden ([`debug`]) |
//! | `<package>.methods.rs` | one table of its RPCs ([`methods`]) |
//! | `every_message.rs` | one list of all messages, for tests ([`methods`]) |
//!
//! The messages go through two compilers: prost knows no extension options and
//! would lose `csi_secret`, so `Debug` is derived from the reflected pool.

mod debug;
mod methods;
mod names;

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost_reflect::DescriptorPool;
use protox::Compiler;

const FILES: [&str; 4] =
    ["csi.proto", "larder.proto", "pluginregistration.proto", "snapshotmetadata.proto"];

#[allow(clippy::print_stdout, reason = "how a build script talks to cargo")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);

    let mut compiler = Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let documented = compiler.file_descriptor_set();

    // What the program carries needs no comments: they are a third of it.
    let descriptors = compiler.include_source_info(false).encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &descriptors)?;
    let pool = DescriptorPool::decode(descriptors.as_slice())?;

    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .btree_map(".")
        .skip_debug(["."])
        .use_arc_self(true)
        .generate_default_stubs(true)
        .compile_fds(documented)?;

    for file in pool.files().filter(|file| FILES.contains(&file.name())) {
        let package = file.package_name();
        fs::write(out.join(format!("{package}.debug.rs")), debug::generate(&file)?)?;
        fs::write(out.join(format!("{package}.methods.rs")), methods::generate(&file))?;
    }
    fs::write(out.join("every_message.rs"), methods::every_message(&pool, &FILES))?;
    Ok(())
}
