//! larder.

fn main() {}
