//! Texts that may be long, and are looked up often.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::heap::heap_block;

/// A text that its copies share. It is hashed once: a mebibyte takes most of a millisecond.
#[derive(Clone)]
pub struct SharedText {
    text: Arc<str>,
    hash: u64,
}

impl SharedText {
    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        // An `Arc` has two counters of a word before the text.
        heap_block(self.text.len() + 2 * size_of::<usize>())
    }
}

impl From<&str> for SharedText {
    fn from(text: &str) -> Self {
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        Self {
            hash: KEYS.get_or_init(RandomState::new).hash_one(text),
            text: text.into(),
        }
    }
}

impl From<String> for SharedText {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl AsRef<str> for SharedText {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl AsRef<[u8]> for SharedText {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Hash for SharedText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for SharedText {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for SharedText {}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_equal_as_their_contents_are() {
        let (one, other) = (SharedText::from("up"), SharedText::from("up".to_owned()));
        let state = RandomState::new();
        assert_eq!(one, other);
        assert_eq!(state.hash_one(&one), state.hash_one(&other));
        assert_ne!(one, SharedText::from("down"));
        assert_eq!(format!("{one} {one:?}"), "up \"up\"");
    }

    #[test]
    fn copies_share_their_memory() {
        let text = SharedText::from("x".repeat(1 << 20));
        let copies = allocation_counter::measure(|| {
            let copies: Vec<_> = (0..100).map(|_| text.clone()).collect();
            assert!(copies.iter().all(|copy| *copy == text));
        });
        assert!(copies.bytes_max < 10_000, "{copies:?}");
    }
}
