//! Asking a person.

use crate::sys::{self, io_fault};
use larder_model::{Fault, Result};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
};

/// Shows `prompt` on the terminal and reads a line, which is not shown. Without its line break.
///
/// # Errors
/// See [`Fault::io`]; `Invalid` at the end of input.
pub fn ask_secret(prompt: &str) -> Result<Vec<u8>> {
    let what = "ask for a secret";
    let open = File::options().read(true).write(true).open("/dev/tty");
    let mut terminal = open.map_err(|e| Fault::io(what, e))?;
    let mut line = Vec::new();
    terminal.write_all(prompt.as_bytes()).map_err(|e| Fault::io(what, e))?;
    {
        let _silent = Silent::new(&terminal)?;
        let mut reader = BufReader::new(&terminal);
        reader.read_until(b'\n', &mut line).map_err(|e| Fault::io(what, e))?;
    }
    // The line break was not shown either.
    terminal.write_all(b"\n").map_err(|e| Fault::io(what, e))?;
    if line.pop() != Some(b'\n') {
        return Err(Fault::invalid(format!("{what}: the input has ended")));
    }
    Ok(line)
}

/// A terminal that does not show what is typed; it does again when this is dropped.
struct Silent<'a>(&'a File);

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> Result<Self> {
        sys::set_echo(terminal, false)
            .map_err(|e| io_fault("keep the terminal from showing a secret", e))?;
        Ok(Self(terminal))
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let _ = sys::set_echo(self.0, true);
    }
}
