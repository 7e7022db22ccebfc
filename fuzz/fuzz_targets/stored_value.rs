#![no_main]
#[allow(dead_code)]
#[path = "../entry.rs"]
mod entry;
libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::stored_value(data));
