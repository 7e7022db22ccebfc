//! Statistics of the cache, by upstream.

use std::collections::HashMap;
use std::sync::Arc;

use super::Engine;
use super::lane::{LaneKey, Subject};
use crate::model::{Layout, Millis, Selector};
use crate::upstream::Upstream;

/// Statistics of the cached data of an upstream.
#[derive(Clone)]
pub struct CacheStats {
    /// The upstream that the data is from.
    pub upstream: Arc<Upstream>,
    /// The weight of its chunks.
    pub bytes: u64,
    /// The number of its chunks.
    pub chunks: u64,
    /// The number of its lanes.
    pub lanes: u64,
    /// The lanes with the most answers, the hottest first.
    pub hottest: Vec<LaneStats>,
}

/// A lane that many answers are made of.
#[derive(Clone, Debug)]
pub struct LaneStats {
    /// The series in the lane.
    pub series: LaneDescription,
    /// Number of answers made of it since it was first cached.
    pub answers: u64,
    /// The weight of its chunks.
    pub bytes: u64,
}

/// A description of a lane's series; connection details, which may hold secrets, are left out.
#[derive(Clone, Debug, PartialEq)]
pub enum LaneDescription {
    /// The points of a metric.
    Metric {
        /// Its conditions.
        selector: Selector,
        /// Raw points or buckets.
        layout: Layout,
    },
    /// The series of an expression.
    Expression {
        /// The expression.
        query: String,
        /// Milliseconds between two evaluation times.
        step: Millis,
    },
}

/// Most lanes that are named for an upstream.
const HOTTEST: usize = 10;

#[derive(Default)]
struct Sum {
    bytes: u64,
    chunks: u64,
    answers: u64,
}

impl Engine {
    /// Returns the statistics of each upstream, in the order of the configuration. Takes time in
    /// proportion to the number of cached chunks.
    pub fn cache_stats(&self) -> Vec<CacheStats> {
        let mut lanes: HashMap<LaneKey, Sum> = HashMap::new();
        self.memory.cache.each(|lane, bytes, answers| {
            let sum = lanes.entry(lane.clone()).or_default();
            sum.bytes += bytes;
            sum.chunks += 1;
            // An answer may be made of several chunks.
            sum.answers = sum.answers.max(answers);
        });
        let of = |upstream: &Arc<Upstream>| {
            let id = upstream.id();
            let mine = lanes.iter().filter(|(l, _)| l.upstream() == id);
            let mut mine: Vec<(&LaneKey, &Sum)> = mine.collect();
            mine.sort_by_key(|(lane, sum)| (std::cmp::Reverse(sum.answers), lane.number()));
            let hot = |(lane, sum): &(&LaneKey, &Sum)| LaneStats {
                series: series(lane),
                answers: sum.answers,
                bytes: sum.bytes,
            };
            CacheStats {
                upstream: upstream.clone(),
                bytes: mine.iter().map(|(_, sum)| sum.bytes).sum(),
                chunks: mine.iter().map(|(_, sum)| sum.chunks).sum(),
                lanes: mine.len() as u64,
                hottest: mine.iter().take(HOTTEST).map(hot).collect(),
            }
        };
        self.upstreams().iter().map(of).collect()
    }
}

fn series(lane: &LaneKey) -> LaneDescription {
    match lane.subject() {
        Subject::Metric {
            selector, layout, ..
        } => LaneDescription::Metric {
            selector: selector.clone(),
            layout: *layout,
        },
        Subject::Summaries { selector, .. } => LaneDescription::Metric {
            selector: selector.clone(),
            layout: Layout::Raw,
        },
        Subject::Expression(expression) => LaneDescription::Expression {
            query: expression.query.to_string(),
            step: expression.step.millis(),
        },
    }
}
