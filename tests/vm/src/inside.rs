//! Tests whose body runs inside a machine.
//!
//! ```text
//!  cargo test ─► test ─ not in a machine ─► machine ─► the same binary, this test alone
//!                                                            └─► test ─ in a machine ─► body
//! ```
//! So one binary is both sides, an assertion that fails inside fails the test outside with the same
//! words, and whoever starts the binary in a machine already ([`IN_VM`] is set) runs the body at once.

use std::{any::type_name_of_val, env};

use crate::machine::Machine;

/// The variable that is set for commands that run inside a machine as part of a test.
pub const IN_VM: &str = "LARDER_IN_VM";

/// Kernel modules that are loaded before the body runs.
const MODULES: &str = "loop ext4 xfs btrfs quota_v2";

/// Runs `body` inside `machine`. To be called by a `#[test]` function with a closure that is written
/// in that very function: the function's name is read off the closure's type. Temporary files of the
/// body lie on the machine's scratch disk where it has one.
///
/// # Panics
/// When the machine cannot be had, and when the body panicked in it (with the end of its output).
#[allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
pub fn inside<F: FnOnce()>(machine: Machine, body: F) {
    if env::var_os(IN_VM).is_some() {
        return body();
    }
    // crate::[module::]test::{{closure}}
    let path = type_name_of_val(&body);
    let test = path
        .split_once("::")
        .and_then(|(_, path)| path.strip_suffix("::{{closure}}"))
        .unwrap_or_else(|| panic!("{path} is no closure in a test function"));
    let own = env::current_exe().expect("the path of this test binary");
    let folder = own.parent().expect("a binary lies in a folder");
    let script = format!(
        "modprobe -a {MODULES}; test ! -d /scratch || export TMPDIR=/scratch; \
         exec \"$0\" --exact \"$1\" --nocapture"
    );
    let output = machine
        .share(folder)
        .env(IN_VM, "1")
        .env("RUST_BACKTRACE", env::var_os("RUST_BACKTRACE").unwrap_or_default())
        .run(["sh".as_ref(), "-c".as_ref(), script.as_ref(), own.as_os_str(), test.as_ref()])
        .expect("a virtual machine");
    let text = output.text();
    assert!(
        output.success() && text.contains("test result: ok. 1 passed"),
        "in the virtual machine ({:?}):\n{text}{}",
        output.end,
        String::from_utf8_lossy(&output.stderr)
    );
}
