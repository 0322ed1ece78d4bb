//! The helper program of this crate's tests: what `larder internal …` is in the real program.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder_host::internal::main(std::env::args_os().skip(1))
}
