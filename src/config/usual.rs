//! The defaults of upstreams by kind.

use std::time::Duration;

use super::UpstreamKind;
use super::raw::millis;
use crate::model::{Freshness, Limits, Reading, Step};

/// The defaults of an upstream's settings.
pub(super) struct Usual {
    pub(super) freshness: Freshness,
    pub(super) reading: Reading,
    pub(super) limits: Limits,
}

impl Usual {
    pub(super) fn of(kind: &UpstreamKind) -> Self {
        let usual = Self {
            freshness: Freshness::default(),
            reading: Reading::default(),
            limits: Limits::default(),
        };
        let UpstreamKind::CloudWatch { .. } = kind else {
            return usual;
        };
        // CloudWatch's own metrics change for about ten minutes, and each call is billed.
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self {
            freshness: Freshness {
                settle: millis(minutes(15)),
                refresh: minutes(2),
                recheck: Duration::ZERO,
                history_ttl: minutes(15 * 24 * 60),
                metadata_ttl: minutes(15),
                ..usual.freshness
            },
            reading: Reading {
                interval: Step::SECOND.times(60),
                refresh_ahead: false,
                ..usual.reading
            },
            limits: Limits {
                per_second: 20.0,
                burst: 20,
                max_concurrency: 8,
                ..usual.limits
            },
        }
    }
}
