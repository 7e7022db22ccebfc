//! Whole answers in the second level. The newest answer to a query has one place, whatever its
//! evaluation time; one that has settled has one for its time. Its age is judged by who reads it.

mod text;

use std::sync::Arc;
use std::time::Duration;

use self::text::{StoredPolicy, read, text};
use super::{Named, READ_INLINE, SecondLevel, Tier};
use crate::engine::metadata::MetadataQuery;
use crate::engine::passthrough::PassthroughRequest;
use crate::engine::whole::{CachePolicy, WholeEntry, WholeIdentity, WholeKey, WholeQuery};
use crate::engine::{Engine, RequestContext};
use crate::model::{Freshness, MAX_TIME, Millis, RangeSet, SharedText, Step, TimeRange};
use crate::store::LevelState;
use crate::store::key::{Canonical, Slot, ValueKey};
use crate::store::page::{self, Block, BlockContent, KnownSpan, Stamp, ValueId};
use crate::upstream::Upstream;
use crate::wire::mirror::request::{write_field_names, write_field_values};

/// The cell of a whole answer, which has none.
const CELL: Step = Step::MILLI;

/// A query as levels know it.
pub(super) struct StoredQuery {
    /// All of it but its evaluation time.
    form: Canonical,
    /// Its evaluation time.
    time: Option<String>,
}

impl StoredQuery {
    /// `query` as levels know it; `None` if its answer is kept in none.
    pub(super) fn of(query: &WholeQuery) -> Option<Self> {
        let mut form = Canonical::default();
        let mut time = None;
        match query {
            WholeQuery::List(details, query) | WholeQuery::Page(details, query) => {
                let kind = match query {
                    MetadataQuery::Names(_) => "names",
                    MetadataQuery::Values(_) => "values",
                };
                form.part(kind).part(match query {
                    MetadataQuery::Names(query) => write_field_names(&details.members(), query),
                    MetadataQuery::Values(query) => write_field_values(&details.members(), query),
                });
            }
            WholeQuery::Response(request) => {
                let PassthroughRequest {
                    path,
                    params,
                    body,
                    headers,
                    json,
                } = request;
                let timeless: Vec<&(String, SharedText)> =
                    params.iter().filter(|(name, _)| name != "time").collect();
                if params.len() > timeless.len() + 1 {
                    return None;
                }
                time = request.time().map(str::to_owned);
                form.part("response").part(path);
                form.pairs(timeless.into_iter()).part(body);
                form.pairs(headers.iter()).number(i64::from(*json));
            }
            WholeQuery::Catalogue(_) | WholeQuery::Newest(_) | WholeQuery::Range(..) => {
                return None;
            }
        }
        form.part(match query {
            WholeQuery::List(..) => "list",
            _ => "answer",
        });
        Some(Self { form, time })
    }

    /// The place of an answer that has settled at the evaluation time.
    fn settled(&self) -> Option<Slot> {
        let seconds: f64 = self.time.as_deref()?.parse().ok()?;
        let millis = (seconds * 1000.0).round();
        let within = millis.abs() <= MAX_TIME as f64;
        within.then_some(Slot::Page(millis as Millis))
    }
}

/// An answer that waits to be written.
#[derive(Clone)]
pub(super) struct WholeWrite {
    upstream: Arc<Upstream>,
    pub(super) key: WholeKey,
    entry: Arc<WholeEntry>,
    stamp: Stamp,
    attempts: u32,
}

impl WholeWrite {
    pub(super) fn bytes(&self) -> usize {
        self.key.heap_bytes() + self.entry.content.heap_bytes() + super::queue::PIECE_BYTES
    }
}

impl SecondLevel {
    /// Queues `entry`, the answer under `key`, to be written to each level; it is the `newest` there
    /// is of its query. It is called while nothing can be invalidated in memory.
    pub(in crate::engine) fn put_whole(
        &self,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        newest: bool,
        entry: &Arc<WholeEntry>,
    ) {
        let policy = policy(&entry.policy);
        if upstream.stored_as.is_none() || entry.content.is_error() || policy.is_none() {
            return;
        }
        let short = policy == Some(StoredPolicy::Short);
        let query = StoredQuery::of(&key.query);
        // An answer that may still change and is not the newest would hide that.
        if query.is_none_or(|query| short && query.time.is_some() && !newest) {
            return;
        }
        for tier in &self.tiers {
            // On a disk, an answer for some seconds would only take the place of others.
            if short && !tier.level.is_shared() {
                continue;
            }
            let Some(stamp) = tier.applied() else {
                tier.level.metrics().dropped("resting", 1);
                continue;
            };
            let write = WholeWrite {
                upstream: upstream.clone(),
                key: key.clone(),
                entry: entry.clone(),
                stamp,
                attempts: 0,
            };
            if !tier.queue.add_whole(write) {
                tier.level.metrics().dropped("queue", 1);
            }
        }
    }
}

fn policy(policy: &CachePolicy) -> Option<StoredPolicy> {
    match policy {
        CachePolicy::Short => Some(StoredPolicy::Short),
        CachePolicy::Metadata => Some(StoredPolicy::Metadata),
        CachePolicy::Settled => Some(StoredPolicy::Settled),
        CachePolicy::NoStore(_) | CachePolicy::AtTime { .. } => None,
    }
}

impl Engine {
    /// Adds what the second level has of the answer under `key` to the whole answers in memory,
    /// where nothing of it is `known`. Whether there was a read.
    pub(in crate::engine) async fn ask_second_level_whole(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        newest: Option<&WholeKey>,
        known: bool,
        context: &RequestContext,
    ) -> bool {
        let Some(second) = &self.memory.second else {
            return false;
        };
        // Nobody else writes to a disk, so it has nothing newer than what is known.
        let shared = second.tiers.iter().any(|tier| tier.level.is_shared());
        let fetching = self.memory.whole.flights.is_under_way(key);
        if upstream.stored_as.is_none() || fetching || (known && !shared) {
            return false;
        }
        let Some(wait) = second.wait(context) else {
            return false;
        };
        let span = context.span("second level");
        let trace = context.within(&span).call.trace;
        let read = |_, _| {
            let (engine, upstream) = (self.clone(), upstream.clone());
            let (key, newest) = (key.clone(), newest.cloned());
            async move {
                engine.read_whole(&upstream, &key, newest).await;
                Ok(())
            }
        };
        let joined = second.reading_whole.join_or_start(
            key,
            &[TimeRange::ALL],
            &TimeRange::ALL,
            &trace,
            read,
        );
        for flight in &joined.flights {
            let _ = tokio::time::timeout_at(wait.until, flight.outcome()).await;
        }
        let fresh = self.fresh_whole(upstream, key, context).is_some();
        wait.end(fresh);
        true
    }

    /// Reads what the levels have of the answer under `key` into the whole answers in memory.
    async fn read_whole(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        newest: Option<WholeKey>,
    ) {
        let (Some(second), Some(query)) = (&self.memory.second, StoredQuery::of(&key.query)) else {
            return;
        };
        let since = self.memory.generation();
        let query = Arc::new(query);
        for tier in &second.tiers {
            let mut fresh = false;
            for Answer { time, entry } in tier.read_whole(upstream, key, &query).await {
                let lifetime = entry.policy.lifetime(&upstream.freshness);
                let age = self.clock.monotonic().saturating_sub(entry.fetched);
                let same = time == query.time;
                fresh |= same && lifetime.is_some_and(|lifetime| age < lifetime);
                let key = match same {
                    true => key.clone(),
                    false => match (&key.query, &time, &newest) {
                        // What was the newest answer serves if a newer one cannot be had.
                        (WholeQuery::Response(request), Some(time), Some(_)) => {
                            let request = WholeQuery::Response(request.at_text(time));
                            WholeIdentity::new(upstream, request)
                        }
                        _ => continue,
                    },
                };
                let whole = &self.memory.whole;
                let store = || whole.insert_found(&key, newest.as_ref(), Arc::new(entry));
                self.memory.if_current(since, store);
            }
            if fresh {
                return;
            }
        }
    }
}

/// An answer that a level has.
pub(super) struct Answer {
    /// Its evaluation time, as it was asked for.
    time: Option<String>,
    entry: WholeEntry,
}

impl Answer {
    /// Its age and for how long it is fresh, if it is one to `query`.
    pub(super) fn judged(
        &self,
        query: &StoredQuery,
        context: &RequestContext,
        freshness: &Freshness,
    ) -> Option<(Duration, Duration)> {
        let lifetime = self.entry.policy.lifetime(freshness)?;
        let age = context.arrived.saturating_sub(self.entry.fetched);
        (self.time == query.time).then_some((age, lifetime))
    }
}

impl Tier {
    fn named_whole(&self, upstream: &Upstream, key: &WholeKey, form: &Canonical) -> Option<Named> {
        let upstream = upstream.stored_as(key.upstream)?;
        Some(Named::new(self, &upstream, form))
    }

    /// The answers to `query`, which is under `key`, that the level has.
    pub(super) async fn read_whole(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: &WholeKey,
        query: &Arc<StoredQuery>,
    ) -> Vec<Answer> {
        let (state, named) = (
            self.level.state(),
            self.named_whole(upstream, key, &query.form),
        );
        let (Some(state), Some(named)) = (state, named) else {
            return Vec::new();
        };
        let mut slots = vec![Slot::Whole];
        slots.extend(query.settled());
        let keys = slots.iter().map(|slot| ValueKey::new(&named.lane, *slot));
        let found = self.level.read(keys.collect()).await.unwrap_or_default();
        let values = slots.into_iter().zip(found);
        let values: Vec<_> = values
            .filter_map(|(slot, found)| Some((slot, found?.bytes?)))
            .collect();
        let large = values.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > READ_INLINE;
        let (tier, upstream, key) = (self.clone(), upstream.clone(), key.clone());
        let read = move || {
            let entry = |(slot, bytes): &(Slot, Vec<u8>)| {
                tier.whole_entry(&upstream, &key, &named, &state, *slot, bytes)
            };
            values.iter().filter_map(entry).collect()
        };
        match large {
            true => crate::work::elsewhere(read).await.unwrap_or_default(),
            false => read(),
        }
    }

    fn whole_entry(
        &self,
        upstream: &Upstream,
        key: &WholeKey,
        named: &Named,
        state: &LevelState,
        slot: Slot,
        bytes: &[u8],
    ) -> Option<Answer> {
        let (value, unknown) = self.value(named, state, (slot, CELL), bytes)?;
        let read = match (&value.parts[..], value.content) {
            ([part], BlockContent::Text(text)) => {
                read(&text, &key.query).map(|(head, content)| (*part, head, content))
            }
            _ => None,
        };
        let Some((part, head, content)) = read else {
            self.unreadable("text");
            return None;
        };
        // Whatever range was invalidated, the answer may be made of it.
        if !unknown.is_empty() {
            return None;
        }
        let policy = match head.policy {
            StoredPolicy::Short => CachePolicy::Short,
            StoredPolicy::Metadata => CachePolicy::Metadata,
            StoredPolicy::Settled => CachePolicy::Settled,
        };
        let lifetime = policy.lifetime(&upstream.freshness)?;
        let fetched = self.fetched(state, &part, lifetime)?;
        let entry = WholeEntry {
            content,
            policy,
            fetched,
        };
        Some(Answer {
            time: head.time,
            entry,
        })
    }

    /// Writes `answers`, each in place of one that was fetched earlier.
    pub(super) async fn write_whole(
        self: &Arc<Self>,
        answers: Vec<WholeWrite>,
        state: &LevelState,
    ) {
        let written = answers
            .into_iter()
            .map(|answer| self.write_answer(answer, state));
        for outcome in futures_util::future::join_all(written).await {
            match outcome {
                Ok(()) => {}
                Err((mut answer, "conflict")) if answer.attempts + 1 < super::write::ATTEMPTS => {
                    answer.attempts += 1;
                    if !self.queue.add_whole(answer) {
                        self.level.metrics().dropped("queue", 1);
                    }
                }
                Err((_, reason)) => self.level.metrics().dropped(reason, 1),
            }
        }
    }

    async fn write_answer(
        self: &Arc<Self>,
        answer: WholeWrite,
        state: &LevelState,
    ) -> Result<(), (WholeWrite, &'static str)> {
        let query = StoredQuery::of(&answer.key.query);
        let named =
            |query: &StoredQuery| self.named_whole(&answer.upstream, &answer.key, &query.form);
        let policy = policy(&answer.entry.policy);
        let (Some(query), Some(policy)) = (query, policy) else {
            return Ok(());
        };
        let Some(named) = named(&query) else {
            return Ok(());
        };
        match state.invalidations.unknown(answer.stamp, named.upstream) {
            Some(unknown) if unknown.is_empty() => {}
            // It has been invalidated while it waited.
            _ => return Ok(()),
        }
        let settled = policy == StoredPolicy::Settled;
        let slot = query.settled().filter(|_| settled).unwrap_or(Slot::Whole);
        let key = ValueKey::new(&named.lane, slot);
        let Some(found) = self.level.look(vec![key]).await else {
            return Err((answer, "resting"));
        };
        let fetched = state.clock.stamp(answer.entry.fetched);
        let found = found.into_iter().next().flatten();
        let mark = found.as_ref().map(|found| found.mark);
        let (entry, stamp) = (answer.entry.clone(), state.invalidations.stamp());
        let (tier, state) = (self.clone(), state.clone());
        let encode = move || {
            let old = found.and_then(|found| found.bytes);
            let old = old.and_then(|old| tier.value(&named, &state, (slot, CELL), &old));
            let newer = |(old, unknown): &(Block, _)| {
                let same = |part: &KnownSpan| part.fetched >= fetched;
                unknown == &RangeSet::new() && old.parts.iter().any(same)
            };
            if old.as_ref().is_some_and(newer) {
                return Ok(None);
            }
            let block = Block {
                stamp,
                parts: vec![KnownSpan {
                    range: TimeRange::clamped(0, MAX_TIME),
                    fetched,
                    settled,
                }],
                content: BlockContent::Text(
                    text(query.time.clone(), policy, &entry.content).ok_or("size")?,
                ),
            };
            let id = ValueId {
                lane: &named.lane,
                slot,
                cell: CELL,
            };
            let bytes = page::encode(id, &block).ok_or("size")?;
            match bytes.len() > super::write::MOST_VALUE {
                true => Err("size"),
                false => Ok(Some(bytes)),
            }
        };
        let encoded = crate::work::elsewhere(encode).await;
        let bytes = match encoded.unwrap_or(Err("resting")) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(reason) => return Err((answer, reason)),
        };
        let freshness = &answer.upstream.freshness;
        let lifetime = answer.entry.policy.lifetime(freshness).unwrap_or_default();
        let put = crate::store::Put {
            key,
            replaces: mark,
            bytes,
            ttl: match settled {
                true => lifetime,
                false => lifetime.saturating_add(freshness.max_stale),
            },
        };
        match self.level.write(vec![put]).await.as_deref() {
            Some([true]) => Ok(()),
            Some(_) => Err((answer, "conflict")),
            None => Err((answer, "resting")),
        }
    }
}

#[cfg(test)]
mod tests;
