//! The SQS driver on the real service.

fn main() {}
