//! A panic is a log line in the configured format, not the runtime's own text.

use std::process::Command;

use heliostat::telemetry::logs::{LogFormat, start};
use serde_json::Value;
use tracing::Level;

/// Panics in a process of its own, with logging started; run by the tests below.
#[test]
#[ignore = "a part of other tests"]
fn panicking_process() {
    let json = std::env::var_os("LOG_FORMAT").is_some_and(|format| format == "json");
    let format = if json {
        LogFormat::Json
    } else {
        LogFormat::Human
    };
    start(Level::ERROR, format, false);
    let named = std::thread::Builder::new().name("worker".into());
    let thread = named.spawn(|| panic!("first line\nsecond \"line\""));
    assert!(thread.unwrap().join().is_err());
}

/// Returns its lines on standard error.
fn lines(format: &str) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "panics::panicking_process",
        "--ignored",
        "--nocapture",
    ]);
    let run = command.env("LOG_FORMAT", format).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let said = String::from_utf8(run.stderr).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn a_panic_is_one_json_object_in_the_log() {
    let lines = lines("json");
    let [line] = &lines[..] else {
        panic!("{lines:?}");
    };
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["level"], "ERROR", "{line}");
    assert_eq!(
        line["message"],
        "panicked: first line\\nsecond \\\"line\\\""
    );
    assert_eq!(line["thread"], "worker");
    let at = line["at"].as_str().unwrap();
    assert!(at.starts_with("tests/it/panics.rs:"), "{at}");
}

#[test]
fn a_panic_is_one_line_of_a_log_for_people() {
    let lines = lines("human");
    let [line] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert!(
        line.contains("ERROR panicked: first line\\nsecond"),
        "{line}"
    );
}
