//! A stand-in for signed requests in a build without the cargo feature `aws`, in which no
//! configuration can ask for them.

use super::transport::Outgoing;
use crate::adapters::Response;
use crate::model::Error;

/// A type without values: nothing is signed without the feature `aws`.
pub enum AwsSigner {}

/// A type without values, as [`AwsSigner`] is.
pub(super) enum Signed {}

impl AwsSigner {
    /// Returns the source of the credentials in use.
    pub fn source(&self) -> Option<String> {
        match *self {}
    }

    #[allow(
        clippy::unused_async,
        reason = "it holds the place of a call that waits"
    )]
    pub(super) async fn sign(&self, _: &mut Outgoing) -> Result<Signed, Error> {
        match *self {}
    }

    pub(super) fn refused(&self, _: &Response, _: &Signed) -> Option<Error> {
        match *self {}
    }
}
