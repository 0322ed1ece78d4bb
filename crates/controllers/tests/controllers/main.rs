//! Controllers at work: with an API server and a driver of a few lines, and a clock that runs when
//! everybody waits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod changes;
mod lab;
mod leader;
