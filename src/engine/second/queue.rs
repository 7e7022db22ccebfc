//! The writes that wait for a level, bounded in bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::whole::WholeWrite;
use crate::adapters::Data;
use crate::engine::chunk::{Piece, Segment};
use crate::engine::lane::{Lane, LaneKey};
use crate::engine::whole::WholeKey;
use crate::store::page::Stamp;
use crate::wire::prometheus::heap_bytes;

/// Lanes and answers that are written at once.
const BATCH: usize = 32;

/// Bytes of what waits, besides its data.
pub(super) const PIECE_BYTES: usize = 512;

/// Most bytes that wait.
const MOST_BYTES: usize = 16 << 20;

/// The writes that wait for a level.
#[derive(Default)]
pub(super) struct WriteQueue {
    // A plain mutex: it is held for a look-up and never across an await.
    waiting: Mutex<Waiting>,
    pub(super) wake: Notify,
}

#[derive(Default)]
struct Waiting {
    lanes: HashMap<LaneKey, LaneWrite>,
    answers: HashMap<WholeKey, WholeWrite>,
    order: VecDeque<Place>,
    bytes: usize,
    /// Those of them that are being written.
    writing: usize,
}

/// The data that is written together.
pub(super) struct Batch {
    pub(super) lanes: Vec<LaneWrite>,
    pub(super) answers: Vec<WholeWrite>,
}

/// A place in the order of what waits.
enum Place {
    Lane(LaneKey),
    Answer(WholeKey),
}

/// The data of one lane that waits.
pub(super) struct LaneWrite {
    pub(super) lane: Lane,
    pub(super) pieces: Vec<(Arc<Piece>, Stamp)>,
    pub(super) bytes: usize,
    pub(super) attempts: u32,
}

pub(super) fn weight(piece: &Piece) -> usize {
    let data = match &piece.data {
        Data::Points(points) => points.heap_bytes(),
        Data::Matrix(matrix) => heap_bytes(&matrix.series) + matrix.annotations.heap_bytes(),
    };
    data + piece.segments.len() * size_of::<Segment>() + PIECE_BYTES
}

impl WriteQueue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Lanes are added and taken whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds data of a lane; returns `false` if there is no room.
    pub(super) fn add(&self, write: LaneWrite) -> bool {
        let mut waiting = self.lock();
        if waiting.bytes + write.bytes > MOST_BYTES {
            return false;
        }
        waiting.bytes += write.bytes;
        let key = write.lane.key.clone();
        match waiting.lanes.get_mut(&key) {
            Some(same) => {
                same.bytes += write.bytes;
                same.attempts = same.attempts.max(write.attempts);
                same.pieces.extend(write.pieces);
            }
            None => {
                waiting.order.push_back(Place::Lane(key.clone()));
                waiting.lanes.insert(key, write);
            }
        }
        drop(waiting);
        self.wake.notify_one();
        true
    }

    /// Adds an answer, in place of one that waits under the same key; `false` if there is no room.
    pub(super) fn add_whole(&self, write: WholeWrite) -> bool {
        let mut waiting = self.lock();
        if waiting.bytes + write.bytes() > MOST_BYTES {
            return false;
        }
        waiting.bytes += write.bytes();
        let key = write.key.clone();
        match waiting.answers.insert(key.clone(), write) {
            Some(older) => waiting.bytes -= older.bytes(),
            None => waiting.order.push_back(Place::Answer(key)),
        }
        drop(waiting);
        self.wake.notify_one();
        true
    }

    /// Takes what is to be written next.
    pub(super) fn take(&self) -> Batch {
        let mut waiting = self.lock();
        let mut batch = Batch {
            lanes: Vec::new(),
            answers: Vec::new(),
        };
        waiting.writing = 0;
        while batch.lanes.len() + batch.answers.len() < BATCH
            && let Some(place) = waiting.order.pop_front()
        {
            let bytes = match place {
                Place::Lane(key) => waiting.lanes.remove(&key).map(|write| {
                    let bytes = write.bytes;
                    batch.lanes.push(write);
                    bytes
                }),
                Place::Answer(key) => waiting.answers.remove(&key).map(|write| {
                    let bytes = write.bytes();
                    batch.answers.push(write);
                    bytes
                }),
            };
            let bytes = bytes.unwrap_or(0);
            waiting.bytes -= bytes;
            waiting.writing += bytes;
        }
        batch
    }

    /// Returns the bytes that wait or are being written.
    pub(super) fn bytes(&self) -> usize {
        let waiting = self.lock();
        waiting.bytes + waiting.writing
    }

    /// Signals the writing task that nothing more will be added.
    pub(super) fn close(&self) {
        self.wake.notify_one();
    }

    /// Waits until nothing waits or is being written.
    pub(super) async fn drained(&self) {
        loop {
            {
                let waiting = self.lock();
                if waiting.order.is_empty() && waiting.writing == 0 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
