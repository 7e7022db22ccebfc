//! The statistics a bucket can be reduced to.

/// A statistic over the points of a bucket. The protocol's `X_NO_ZEROS` methods are the same
/// statistics as `X`: a mirror never fills empty buckets, so there are no zeros to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Statistic {
    /// Sum divided by count.
    Mean,
    /// 25th percentile; percentiles are R-7, as numpy's default and PromQL's `quantile`.
    P25,
    /// Median.
    P50,
    /// 75th percentile.
    P75,
    /// 90th percentile.
    P90,
    /// 95th percentile.
    P95,
    /// 98th percentile.
    P98,
    /// 99th percentile.
    P99,
    /// Largest value.
    Max,
    /// Smallest value.
    Min,
    /// Compensated sum in time order.
    Sum,
    /// Number of points.
    Count,
}

impl Statistic {
    /// Every statistic, once.
    pub const ALL: [Self; 12] = [
        Self::Mean,
        Self::P25,
        Self::P50,
        Self::P75,
        Self::P90,
        Self::P95,
        Self::P98,
        Self::P99,
        Self::Max,
        Self::Min,
        Self::Sum,
        Self::Count,
    ];

    /// Returns the quantile in `0..=1` of a percentile, `None` for the other statistics.
    pub fn quantile(self) -> Option<f64> {
        match self {
            Self::P25 => Some(0.25),
            Self::P50 => Some(0.5),
            Self::P75 => Some(0.75),
            Self::P90 => Some(0.9),
            Self::P95 => Some(0.95),
            Self::P98 => Some(0.98),
            Self::P99 => Some(0.99),
            Self::Mean | Self::Max | Self::Min | Self::Sum | Self::Count => None,
        }
    }

    /// Returns the statistic that makes an exact value of a larger bucket out of the values of the
    /// smaller buckets it consists of, or `None` where none does.
    pub fn of_itself(self) -> Option<Self> {
        match self {
            Self::Max | Self::Min | Self::Sum => Some(self),
            Self::Count => Some(Self::Sum),
            Self::Mean
            | Self::P25
            | Self::P50
            | Self::P75
            | Self::P90
            | Self::P95
            | Self::P98
            | Self::P99 => None,
        }
    }
}
