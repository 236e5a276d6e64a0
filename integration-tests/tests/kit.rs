//! The `kit` command, where it needs to be a program.

use std::process::Command;

#[test]
fn a_process_that_is_killed_loses_nothing() {
    let kit = Command::new(env!("CARGO_BIN_EXE_kit"))
        .args(["soak", "local", "--seconds", "3", "--seed", "1", "--faults", "kill"])
        .output()
        .expect("it runs");
    let line = String::from_utf8_lossy(&kit.stdout);
    assert!(kit.status.success(), "{line}{}", String::from_utf8_lossy(&kit.stderr));
    assert!(line.starts_with("local accepted=") && line.contains(" lost=0 "), "{line}");
}
