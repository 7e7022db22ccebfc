//! The memory that the allocator uses for data on the heap.

use http::{HeaderName, HeaderValue};

/// Returns the bytes that a heap block of `bytes` takes: an allocator such as glibc's `malloc` adds a
/// word, rounds up to 16 and gives no block of fewer than 32 bytes. 0 for nothing.
pub fn heap_block(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        _ => (bytes.saturating_add(8)).next_multiple_of(16).max(32),
    }
}

/// The bytes of the block that the copies of a `Bytes` share besides its contents: address, capacity and count, of a
/// word each. It is allocated at the first copy.
const SHARED_BYTES: usize = 3 * size_of::<usize>();

/// Returns the bytes that `headers` hold on the heap, about. Their names are those that are known
/// here, which hold none; their values are `Bytes` that have been copied.
pub fn heap_headers(headers: &Vec<(HeaderName, HeaderValue)>) -> usize {
    let value = |v: &HeaderValue| heap_block(v.len()) + heap_block(SHARED_BYTES);
    let values: usize = headers.iter().map(|(_, v)| value(v)).sum();
    heap_block(headers.capacity() * size_of::<(HeaderName, HeaderValue)>()) + values
}
