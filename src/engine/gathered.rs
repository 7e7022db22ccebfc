//! Hashing of many small parts.

use std::hash::{DefaultHasher, Hasher};

/// Gathers what is hashed, since one long write costs less than many short ones.
pub(super) struct Gathered {
    hasher: DefaultHasher,
    bytes: [u8; 128],
    length: usize,
}

impl Gathered {
    /// Returns one that hashes with `hasher`.
    pub(super) fn new(hasher: DefaultHasher) -> Self {
        Self {
            hasher,
            bytes: [0; 128],
            length: 0,
        }
    }

    fn pass_on(&mut self) {
        let gathered = self.bytes.get(..self.length).unwrap_or_default();
        self.hasher.write(gathered);
        self.length = 0;
    }
}

impl Hasher for Gathered {
    fn finish(&self) -> u64 {
        let mut hasher = self.hasher.clone();
        hasher.write(self.bytes.get(..self.length).unwrap_or_default());
        hasher.finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.length + bytes.len() > self.bytes.len() {
            self.pass_on();
        }
        match self.bytes.get_mut(self.length..self.length + bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.hasher.write(bytes),
        }
    }
}
