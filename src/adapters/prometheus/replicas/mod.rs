//! `replicas = "fill"`: gaps in the answer of one replica are filled from the answers of others,
//! series by series.
//!
//! Values at evaluation times are filled one by one. Stored samples are filled in gaps of more than
//! two and a half times their distance, and never nearer to a sample of the first replica than half
//! of that: two servers scrape a target at different moments, so that their samples side by side
//! would count double.

mod series;
mod spacing;

use std::ops::ControlFlow;
use std::sync::Arc;

use super::exchange;
use crate::adapters::{Comparison, Exchange, Next, Request, Response, date};
use crate::model::{Error, Evidence, Kind};

pub(super) use series::{InstantSeries, TextSeries};
pub(super) use spacing::Spacing;

/// The names of labels that tell replicas apart.
#[derive(Clone, Debug, Default)]
pub struct ReplicaLabels(Arc<[String]>);

impl ReplicaLabels {
    /// Returns labels of these `names`.
    pub fn new(names: &[String]) -> Self {
        Self(names.into())
    }

    /// Returns whether there are none.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the label `name` is one of them.
    fn hold(&self, name: &str) -> bool {
        self.0.iter().any(|label| label == name)
    }
}

/// The series of a replica's answer.
pub(super) trait Replicated: Clone + Send + Sync + 'static {
    /// Returns the series without the labels that tell replicas apart, each label set once.
    fn unlabelled(self, labels: &ReplicaLabels, spacing: &Spacing) -> Self;

    /// Returns whether there is none, or one has a gap.
    fn has_gap(&self, spacing: &Spacing) -> bool;

    /// Adds what `other` has in gaps of these.
    fn fill(&mut self, other: Self, spacing: &Spacing);
}

/// The reader of a response.
type Reader<R> = Box<dyn Fn(&Response) -> Result<R, Error> + Send + Sync>;

/// The continuation with the series of an answer, filled or not.
type GoOn<M, T> = Box<dyn Fn(M) -> Result<Next<T>, Error> + Send + Sync>;

/// A request to a replica, and the reading of its answer.
pub(super) struct Asking<M, T> {
    pub(super) request: Request,
    /// The reader of a response.
    pub(super) read: Reader<M>,
    /// The continuation with the series, filled or not.
    pub(super) done: GoOn<M, T>,
    /// The places at which samples are expected.
    pub(super) spacing: Spacing,
    /// The labels that tell replicas apart; without them no other replica is asked.
    pub(super) labels: Option<ReplicaLabels>,
}

/// Returns an exchange that asks one replica and, where its answer has gaps, others.
pub(super) fn ask<M: Replicated, T: 'static>(asking: Asking<M, T>) -> Exchange<T> {
    let Asking {
        request,
        read,
        done,
        spacing,
        labels,
    } = asking;
    ask_or_go_on(
        request,
        move |response| read(response).map(ControlFlow::Continue),
        done,
        spacing,
        labels,
    )
}

/// The same where a response may also call for another request.
pub(super) fn ask_or_go_on<M: Replicated, T: 'static>(
    request: Request,
    read: impl Fn(&Response) -> Result<ControlFlow<Exchange<T>, M>, Error> + Send + Sync + 'static,
    done: impl Fn(M) -> Result<Next<T>, Error> + Send + Sync + 'static,
    spacing: Spacing,
    labels: Option<ReplicaLabels>,
) -> Exchange<T> {
    let Some(labels) = labels else {
        return exchange(request, move |response| match read(response)? {
            ControlFlow::Continue(series) => done(series),
            ControlFlow::Break(next) => Ok(Next::More(next)),
        });
    };
    let ways = Arc::new(Ways {
        request: request.clone(),
        read: Box::new(read),
        done: Box::new(done),
        spacing,
        labels,
    });
    exchange(request, move |response| {
        let spacing = ways.spacing_at(response);
        match (ways.read)(response)? {
            ControlFlow::Continue(series) => {
                let series = series.unlabelled(&ways.labels, &spacing);
                ways.clone().go_on(series, spacing)
            }
            ControlFlow::Break(next) => Ok(Next::More(next)),
        }
    })
}

/// A request that is the same for every replica.
struct Ways<M, T> {
    request: Request,
    read: Reader<ControlFlow<Exchange<T>, M>>,
    done: GoOn<M, T>,
    spacing: Spacing,
    labels: ReplicaLabels,
}

impl<M: Replicated, T: 'static> Ways<M, T> {
    /// Returns what can be expected of `response`.
    fn spacing_at(&self, response: &Response) -> Spacing {
        date(response).map_or(self.spacing, |now| self.spacing.until(now))
    }

    /// Returns what follows if the replicas asked so far have `known` together.
    fn go_on(self: Arc<Self>, known: M, spacing: Spacing) -> Result<Next<T>, Error> {
        if !known.has_gap(&spacing) {
            return (self.done)(known);
        }
        let otherwise = (self.done)(known.clone())?;
        let ask = exchange(self.request.clone(), move |response| {
            let ControlFlow::Continue(theirs) = (self.read)(response)? else {
                let message = "the replicas of the upstream evaluate ranges differently";
                return Err(Error::new(Kind::UpstreamFailed, message).shows(Evidence::Question));
            };
            let mut filled = known.clone();
            filled.fill(theirs.unlabelled(&self.labels, &spacing), &spacing);
            self.clone().go_on(filled, spacing)
        });
        let known = otherwise;
        Ok(Next::Compare(Box::new(Comparison { ask, known })))
    }
}
