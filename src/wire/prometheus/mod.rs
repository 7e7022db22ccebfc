//! The Prometheus HTTP API as bytes: requests, and the answers to range queries as slices of the
//! origin's own text, so that no number is reformatted.
//!
//! Protocol details are those of Prometheus 2.42, `web/api/v1/api.go`, and of its page "HTTP API".

pub mod params;
pub mod read;
pub mod series;
mod track;
pub mod units;
pub mod write;

pub use params::{InstantQuery, Params, RangeQuery};
pub use read::{Extras, Instant, Matrix, Unread, most_labels, read_instant, read_matrix};
pub use series::{Metric, Series, Track, heap_bytes, merge, thin, unpacked_bytes};
pub use units::write_time;
pub use write::{error_type, write_error, write_instant, write_matrix, write_vector};
