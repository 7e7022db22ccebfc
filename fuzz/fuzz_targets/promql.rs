#![no_main]
#[allow(dead_code)]
#[path = "../entry.rs"]
mod entry;
libfuzzer_sys::fuzz_target!(
    // The classifier catches panics of the parser; libfuzzer's own hook would end the process.
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| entry::promql(data)
);
