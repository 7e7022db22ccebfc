//! The charges for an answer that has been read: for its body, and for the data that is built of it.

use std::sync::Arc;

use bytes::Bytes;

use super::{AnswerShare, Place, SMALL, Stage};
use crate::adapters::built_bytes;
use crate::model::{Error, Kind};

/// A body and its share.
struct ChargedBody {
    body: Vec<u8>,
    share: Arc<AnswerShare>,
}

impl AsRef<[u8]> for ChargedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for ChargedBody {
    fn drop(&mut self) {
        self.share.give_back(self.body.len());
        self.share.memory.keep(std::mem::take(&mut self.body));
    }
}

/// The bytes of what is built of the answers to one call, given back when the last copy is dropped: when that
/// has been stored. A call that goes on keeps them while it reads its next answer.
#[derive(Clone, Debug, Default)]
pub struct Charges(Option<Arc<Vec<Arc<BuiltCharge>>>>);

impl Charges {
    fn all(&self) -> impl Iterator<Item = &Arc<BuiltCharge>> {
        self.0.iter().flat_map(|all| all.iter())
    }

    /// Returns these and that of the answer that `share` is for.
    pub(in crate::upstream) fn and(&self, share: Arc<AnswerShare>) -> Self {
        let mut all: Vec<_> = self.all().cloned().collect();
        all.push(Arc::new(BuiltCharge(share)));
        Self(Some(Arc::new(all)))
    }

    /// Takes in that another answer will be read beside what has been built.
    pub(in crate::upstream) fn goes_on(&self) {
        self.all().for_each(|charge| charge.0.stays());
    }

    /// Returns the places of those that have one, the oldest first.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.all().filter_map(|charge| charge.0.place().id)
    }
}

/// The bytes of what is built of one answer.
#[derive(Debug)]
struct BuiltCharge(Arc<AnswerShare>);

impl Drop for BuiltCharge {
    fn drop(&mut self) {
        let built = std::mem::take(&mut self.0.place().built);
        self.0.give_back(built);
    }
}

impl AnswerShare {
    /// Waits until the share has room for what is built of `body`, which has been read, and returns that: its
    /// bytes are given back with the last slice of it, those of what is built with the [`Charges`].
    ///
    /// # Errors
    ///
    /// As [`grow`](Self::grow).
    pub(in crate::upstream) async fn whole(self: Arc<Self>, body: Vec<u8>) -> Result<Bytes, Error> {
        let Some(id) = self.place().id else {
            return Ok(Bytes::from(body));
        };
        self.decodes();
        let length = body.len();
        let (body, built) = match length <= SMALL {
            true => {
                let built = built_bytes(&body);
                (body, built)
            }
            false => {
                let counted = move || {
                    let built = built_bytes(&body);
                    (body, built)
                };
                let counted = crate::work::elsewhere_until(self.deadline, counted).await;
                self.in_time(length)?;
                counted.map_err(|e| {
                    Error::new(Kind::Internal, format!("reading an answer failed: {e}"))
                })?
            }
        };
        self.grow(length + built, true).await?;
        self.place().built = built;
        self.memory.table().set(id, length + built, Stage::Whole);
        self.memory.changed.notify_waiters();
        Ok(Bytes::from_owner(ChargedBody { body, share: self }))
    }

    /// Gives back `bytes` of an answer that has been read.
    fn give_back(&self, bytes: usize) {
        let id = self.place().id;
        if let Some(id) = id {
            let mut table = self.memory.table();
            let mine = table.growing.get(&id).map(|mine| (mine.bytes, mine.stage));
            if let Some((left, stage)) = mine {
                table.set(id, left.saturating_sub(bytes), stage);
            }
            drop(table);
            self.memory.changed.notify_waiters();
        }
    }

    /// Takes in that what has been built of it stays until the next answer has been read, too.
    fn stays(&self) {
        let id = self.place().id;
        let mut table = self.memory.table();
        if let Some(mine) = id.and_then(|id| table.growing.get_mut(&id)) {
            mine.stage = Stage::Stays;
        }
    }
}
