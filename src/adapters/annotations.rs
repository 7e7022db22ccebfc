//! Remarks that come with an answer.

/// A backend's annotations of an answer; sorted, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `warnings`
    pub warnings: Vec<String>,
    /// `infos`
    pub infos: Vec<String>,
    /// Set if the answer has `isPartial`: a part of its data could not be read.
    pub partial: bool,
}

impl Annotations {
    /// Adds those of `others`.
    pub fn add(&mut self, others: &Self) {
        self.partial |= others.partial;
        let lists = [
            (&mut self.warnings, &others.warnings),
            (&mut self.infos, &others.infos),
        ];
        for (mine, others) in lists {
            for remark in others {
                if let Err(at) = mine.binary_search(remark) {
                    mine.insert(at, remark.clone());
                }
            }
        }
    }

    /// Returns the bytes that they hold on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let all = self.warnings.iter().chain(&self.infos);
        all.map(|r| r.capacity() + size_of::<String>()).sum()
    }
}
