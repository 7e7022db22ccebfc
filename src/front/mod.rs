//! The front: listens, admits, routes, and turns answers and errors into HTTP.
//!
//! - `listen`, `stream`: connections, and how they end
//! - `router`, `path`: which path means what; admission, limits, the log line and metrics of a request
//! - `access`: who may ask
//! - `mirror`: the mirror API's four methods
//! - `prometheus`: Prometheus' HTTP API
//! - `respond`, `encoding`: what responses of data have in common
//! - `pages`: health, readiness, metrics, the page at `/`
//! - `admin`: what operators may ask and do
//! - `reloads`: how a new configuration is asked for
//! - `body`, `status`: bodies made of slices; the only map from errors to statuses

mod admin;
mod auth;
mod body;
mod encoding;
pub mod listen;
pub mod mirror;
mod pages;
mod path;
mod prometheus;
mod reloads;
mod respond;
mod router;
mod status;
mod stream;

pub use auth::{AccessControl, Api, Credentials, Rules};
pub use body::Body;
pub use reloads::{Applied, ReloadReply, ReloadRequests, Reloads};
pub use router::{Front, FrontSettings};
pub use status::{error_response, read_body};
