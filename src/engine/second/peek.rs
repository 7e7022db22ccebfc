//! A look into the second level for an explanation: what is read is not kept.

use std::sync::Arc;

use super::whole::StoredQuery;
use super::{MOST_PAGES, SecondLevel, grain, page_span};
use crate::engine::chunk::{Piece, Segment};
use crate::engine::lane::{Lane, LaneKey};
use crate::engine::whole::WholeKey;
use crate::engine::{Engine, RequestContext};
use crate::model::{RangeSet, TimeRange};
use crate::upstream::Upstream;

/// The data that the second level has of the lanes of a query.
#[derive(Default)]
pub(in crate::engine) struct Peek {
    found: Vec<(LaneKey, Piece)>,
    wanted: Vec<(Lane, TimeRange)>,
}

impl Peek {
    /// The data that the level has of `lane`, in which `missing` is to be looked for if it is not known yet.
    pub(in crate::engine) fn of(&mut self, lane: &Lane, missing: &[TimeRange]) -> Option<&Piece> {
        let known = self.found.iter().position(|(key, _)| *key == lane.key);
        if known.is_none()
            && let (Some(first), Some(last)) = (missing.first(), missing.last())
        {
            self.wanted.push((lane.clone(), first.hull(last)));
        }
        self.found.get(known?).map(|(_, piece)| piece)
    }
}

/// The segments of `piece` that count before those of `held`, and where they are.
pub(in crate::engine) fn gained(held: &[Segment], piece: &Piece) -> (Vec<Segment>, RangeSet) {
    let mut gained = Vec::new();
    for segment in &piece.segments {
        let better = |h: &&Segment| (h.settled, h.fetched) >= (segment.settled, segment.fetched);
        let better: RangeSet = held.iter().filter(better).map(|h| h.range).collect();
        let rest = better.missing_from(segment.range);
        gained.extend(rest.iter().map(|range| Segment {
            range: *range,
            ..*segment
        }));
    }
    let ranges = gained.iter().map(|segment| segment.range).collect();
    (gained, ranges)
}

impl Engine {
    /// Looks up what `peek` wants to know. Whether there was anything.
    pub(in crate::engine) async fn peek(&self, peek: &mut Peek, context: &RequestContext) -> bool {
        let Some(second) = &self.memory.second else {
            return false;
        };
        for (lane, range) in std::mem::take(&mut peek.wanted) {
            if page_span(&lane).cells_in(&range) > MOST_PAGES {
                continue;
            }
            let Some(wait) = second.wait(context) else {
                break;
            };
            let found = tokio::time::timeout_at(wait.until, second.gather(&lane, range)).await;
            wait.end(false);
            if let Ok(Some(piece)) = found {
                peek.found.push((lane.key, piece));
            }
        }
        !peek.found.is_empty()
    }

    /// The age and lifetime of the answer under `key` that the second level has.
    pub(in crate::engine) async fn peek_whole(
        &self,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        context: &RequestContext,
    ) -> Option<(std::time::Duration, std::time::Duration)> {
        let second = self.memory.second.as_ref()?;
        let query = Arc::new(StoredQuery::of(&key.query)?);
        let wait = second.wait(context)?;
        let freshness = context.freshness(&upstream.freshness);
        let mut best = None;
        for tier in &second.tiers {
            let read = tier.read_whole(upstream, key, &query);
            let read = tokio::time::timeout_at(wait.until, read).await;
            for entry in read.unwrap_or_default() {
                let Some((age, lifetime)) = entry.judged(&query, context, &freshness) else {
                    continue;
                };
                if best.is_none_or(|(known, _)| age < known) {
                    best = Some((age, lifetime));
                }
            }
        }
        wait.end(false);
        best
    }
}

impl SecondLevel {
    /// Returns the data that the levels have of `range` of `lane`; each is asked for what those before it lack.
    pub(super) async fn gather(&self, lane: &Lane, range: TimeRange) -> Option<Piece> {
        let mut all: Option<Piece> = None;
        for tier in &self.tiers {
            let settled = all.iter().flat_map(|p| &p.segments).filter(|s| s.settled);
            let settled: RangeSet = settled.map(|s| s.range).collect();
            let missing = settled.missing_from(range);
            let (Some(first), Some(last)) = (missing.ranges().first(), missing.ranges().last())
            else {
                break;
            };
            let found = tier.read(lane, &first.hull(last)).await;
            all = match (all, found) {
                (Some(all), Some(found)) => Some(all.joined(&found, grain(lane))),
                (all, found) => found.or(all),
            };
        }
        all
    }
}
