//! Instant queries of PromQL: the time at which they are evaluated, and answers from the lanes of
//! range queries.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::chunk::Segment;
use super::encoded::EncodedResponse;
use super::lane::{Lane, Subject};
use super::outcome::{CacheOutcome, Timing};
use super::range::{RangeRequest, asked};
use super::whole::{Content, WholeAnswer, WholeEntry};
use super::{Engine, RequestContext};
use crate::model::{InstantAlignment, Millis, RawResponse, Step, StepAlignment};
use crate::upstream::Upstream;
use crate::wire::prometheus::write_vector;

/// The evaluation time of an instant query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The time.
    pub time: Millis,
    /// Set if there is no newer one to ask for at present.
    pub newest: bool,
}

impl Engine {
    /// Returns the time at which an instant query for `time`, or for now, is evaluated; `None` leaves it
    /// to the upstream.
    ///
    /// Data that is less than `settle` old may still change, and is served for `refresh` anyway:
    /// all requests within one `refresh` are answered for its beginning, and share the answer. A
    /// client that takes only newer data is answered for the time it asked for; so is one that asks
    /// for a time in the future.
    pub fn evaluation(
        &self,
        upstream: &Upstream,
        time: Option<Millis>,
        context: &RequestContext,
    ) -> Option<Evaluation> {
        let freshness = &upstream.freshness;
        let exact = upstream.reading.instant_alignment == InstantAlignment::Exact
            || context.max_age.is_some_and(|age| age < freshness.refresh);
        let grid = Millis::try_from(freshness.refresh.as_millis());
        let Some(grid) = grid.ok().and_then(Step::new).filter(|_| !exact) else {
            let newest = false;
            return time.map(|time| Evaluation { time, newest });
        };
        let now = context.wall;
        let asked = time.unwrap_or(now);
        let aligned = grid.floor(asked);
        if asked <= now.saturating_sub(freshness.settle) || aligned > now {
            return Some(Evaluation {
                time: asked,
                newest: false,
            });
        }
        Some(Evaluation {
            time: aligned,
            newest: aligned == grid.floor(now),
        })
    }

    /// Answers an instant query from a lane of a range query: `request` is the range of its one
    /// evaluation time. `None` if no lane has that time fresh, or if the upstream sent annotations.
    pub(super) fn out_of_lane(
        &self,
        upstream: &Arc<Upstream>,
        request: RangeRequest,
        context: &RequestContext,
    ) -> Option<WholeAnswer> {
        let (expression, range) = asked(request, StepAlignment::Exact);
        let time = range.start();
        let lane = Lane::of_expression(upstream.clone(), expression);
        let Subject::Expression(expression) = lane.subject() else {
            return None;
        };
        let lanes = self.memory.known_steps.meeting(&lane, expression, time);
        let view = lanes
            .iter()
            .find_map(|lane| self.fresh(lane, &range, context))?;
        let (_, chunk) = view.chunks.iter().next()?;
        let matrix = chunk.matrix()?;
        // A fetch reaches ahead of its moment: what it brought for the future is not what the
        // upstream would say of that time now.
        let ahead = |segment: &Segment| {
            let age = context.arrived.saturating_sub(segment.fetched).as_millis();
            let moment = context
                .wall
                .saturating_sub(Millis::try_from(age).unwrap_or(Millis::MAX));
            !segment.settled && segment.range.holds(time) && moment < time
        };
        if matrix.annotations.heap_bytes() > 0 || chunk.coverage().iter().any(ahead) {
            return None;
        }
        let body = write_vector(&matrix.series, time);
        let kind = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = EncodedResponse::new(Arc::new(RawResponse {
            status: StatusCode::OK,
            headers: vec![kind],
            body: Bytes::from(body),
        }));
        Some(WholeAnswer {
            entry: WholeEntry::unstored(Content::Response(response)),
            cache: CacheOutcome {
                ttl_seconds: i64::try_from(view.ttl.as_secs()).unwrap_or(i64::MAX),
                ..CacheOutcome::nothing_asked()
            },
            timing: Timing::default(),
        })
    }
}
