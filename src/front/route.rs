//! Which path means what.

use super::assets::Asset;
use super::auth::Api;
use super::{admin, mirror, pages, prometheus};
use crate::telemetry::metrics::RequestMetrics;

/// What a path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Mirror(mirror::Method),
    Prometheus(prometheus::ApiEndpoint),
    Page(pages::Page),
    Asset(Asset),
    Admin(admin::Call),
}

/// Paths, normalized, of what Heliostat says of itself.
pub(super) const PAGES: [(&str, pages::Page); 4] = [
    ("/metrics", pages::Page::Metrics),
    ("/healthz", pages::Page::Health),
    ("/readyz", pages::Page::Ready),
    ("/openapi.json", pages::Page::OpenApi),
];

impl Route {
    /// What `path`, normalized, means.
    pub(super) fn of(path: &str) -> Option<Self> {
        let mirror = mirror::Method::of(path).map(Self::Mirror);
        let page = || {
            let found = PAGES.into_iter().find(|(known, _)| *known == path);
            found.map(|(_, page)| Self::Page(page))
        };
        let asset = || Asset::of(path).map(Self::Asset);
        let prometheus = || prometheus::ApiEndpoint::of(path).map(Self::Prometheus);
        let admin = || admin::Call::of(path).map(Self::Admin);
        let found = mirror.or_else(page).or_else(prometheus);
        found.or_else(admin).or_else(asset)
    }

    /// Its API and method in metrics.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mirror(mirror) => ("mirror", mirror.name()),
            Self::Prometheus(endpoint) => ("prometheus", endpoint.name()),
            Self::Page(page) => ("admin", page.name()),
            Self::Asset(asset) => ("admin", asset.name()),
            Self::Admin(call) => ("admin", call.name()),
        }
    }

    /// The API whose rules it is under; probes and the description are open to all.
    pub(super) fn api(self) -> Option<Api> {
        match self {
            Self::Mirror(_) | Self::Asset(_) | Self::Page(pages::Page::Source) => Some(Api::Mirror),
            Self::Prometheus(_) => Some(Api::Prometheus),
            Self::Page(pages::Page::Metrics) => Some(Api::Metrics),
            Self::Admin(_) => Some(Api::Admin),
            Self::Page(_) => None,
        }
    }
}

/// The metrics of requests, by what their path means.
pub(super) struct Metrics {
    known: Vec<(Route, RequestMetrics)>,
    unknown: RequestMetrics,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mirror = mirror::Method::ALL.map(|(_, method)| Route::Mirror(method));
        let pages = PAGES.map(|(_, page)| Route::Page(page));
        let source = Route::Page(pages::Page::Source);
        Self {
            known: mirror
                .into_iter()
                .chain(prometheus::ApiEndpoint::ALL.map(Route::Prometheus))
                .chain(pages)
                .chain([source])
                .chain(admin::Call::ALL.map(Route::Admin))
                .chain(Asset::all().map(Route::Asset))
                .map(|route| {
                    let (api, method) = route.names();
                    (route, RequestMetrics::new(api, method))
                })
                .collect(),
            unknown: RequestMetrics::new("none", "none"),
        }
    }

    pub(super) fn of(&self, route: Option<Route>) -> &RequestMetrics {
        let found = self.known.iter().find(|(r, _)| Some(*r) == route);
        found.map_or(&self.unknown, |(_, metrics)| metrics)
    }
}
