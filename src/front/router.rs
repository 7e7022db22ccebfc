//! The routes: the purpose of each path.

use super::assets::Asset;
use super::auth::Api;
use super::{admin, mirror, pages, prometheus};

/// The purpose of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A method of the mirror API.
    Mirror(mirror::Method),
    /// An endpoint of Prometheus' API.
    Prometheus(prometheus::ApiEndpoint),
    /// A page of Heliostat itself.
    Page(pages::Page),
    /// A file of the page for people.
    Asset(Asset),
    /// A call of the admin API.
    Admin(admin::Call),
}

/// The paths, normalized, of Heliostat's own pages.
const PAGES: [(&str, pages::Page); 4] = [
    ("/metrics", pages::Page::Metrics),
    ("/healthz", pages::Page::Health),
    ("/readyz", pages::Page::Ready),
    ("/openapi.json", pages::Page::OpenApi),
];

impl Route {
    /// Returns its API and method in metrics.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mirror(mirror) => ("mirror", mirror.name()),
            Self::Prometheus(endpoint) => ("prometheus", endpoint.name()),
            Self::Page(page) => ("admin", page.name()),
            Self::Asset(asset) => ("admin", asset.name()),
            Self::Admin(call) => ("admin", call.name()),
        }
    }

    /// Returns whether probes request it; they have places of their own.
    pub(super) fn is_probe(self) -> bool {
        use pages::Page::{Health, Metrics, Ready};
        matches!(self, Self::Page(Health | Ready | Metrics))
    }

    /// Returns the API whose access rules apply; probes and the OpenAPI description are open to all.
    pub(super) fn api(self) -> Option<Api> {
        match self {
            Self::Mirror(_) | Self::Asset(_) | Self::Page(pages::Page::Source) => Some(Api::Mirror),
            Self::Prometheus(_) => Some(Api::Prometheus),
            Self::Page(pages::Page::Metrics) => Some(Api::Metrics),
            Self::Admin(_) => Some(Api::Admin),
            Self::Page(_) => None,
        }
    }

    /// Returns every route, for the table of metrics.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let mirror = mirror::Method::ALL.map(|(_, method)| Self::Mirror(method));
        let pages = PAGES.map(|(_, page)| Self::Page(page));
        mirror
            .into_iter()
            .chain(pages)
            .chain(prometheus::ApiEndpoint::ALL.map(Self::Prometheus))
            .chain([Self::Page(pages::Page::Source)])
            .chain(admin::Call::ALL.map(Self::Admin))
            .chain(Asset::all().map(Self::Asset))
    }

    /// Returns the route of `path`, normalized; `None` if there is nothing at it.
    pub(super) fn of(path: &str) -> Option<Self> {
        let mirror = mirror::Method::of(path).map(Self::Mirror);
        let page = || {
            let found = PAGES.into_iter().find(|(known, _)| *known == path);
            found.map(|(_, page)| Self::Page(page))
        };
        let prometheus = || prometheus::ApiEndpoint::of(path).map(Self::Prometheus);
        let admin = || admin::Call::of(path).map(Self::Admin);
        let asset = || Asset::of(path).map(Self::Asset);
        let page = || page().or_else(|| pages::Page::of_prometheus(path).map(Self::Page));
        let found = mirror.or_else(page).or_else(prometheus);
        found.or_else(admin).or_else(asset)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::path::normalized;
    use super::super::status::mirror_status;
    use super::*;
    use crate::model::{Error, Kind};

    /// All kinds of errors; a new one does not compile until it is here.
    fn every_kind() -> Vec<Kind> {
        let mut kinds = vec![Kind::InvalidRequest];
        while let Some(last) = kinds.last() {
            kinds.push(match last {
                Kind::InvalidRequest => Kind::Unauthenticated,
                Kind::Unauthenticated => Kind::ClientNotAllowed,
                Kind::ClientNotAllowed => Kind::TargetNotAllowed,
                Kind::TargetNotAllowed => Kind::MetricNotFound,
                Kind::MetricNotFound => Kind::UnsupportedFieldType,
                Kind::UnsupportedFieldType => Kind::PathNotFound,
                Kind::PathNotFound => Kind::MethodNotAllowed,
                Kind::MethodNotAllowed => Kind::BodyTooLarge,
                Kind::BodyTooLarge => Kind::UnsupportedMediaType,
                Kind::UnsupportedMediaType => Kind::TooManyPoints,
                Kind::TooManyPoints => Kind::RequestTimeout,
                Kind::RequestTimeout => Kind::Overloaded,
                Kind::Overloaded => Kind::UpstreamBudget,
                Kind::UpstreamBudget => Kind::UpstreamBusy,
                Kind::UpstreamBusy => Kind::UpstreamUnreachable,
                Kind::UpstreamUnreachable => Kind::UpstreamFailed,
                Kind::UpstreamFailed => Kind::TimesAligned,
                Kind::TimesAligned => Kind::AnswerTooLarge,
                Kind::AnswerTooLarge => Kind::DeadlineExceeded,
                Kind::DeadlineExceeded => Kind::Internal,
                Kind::Internal => return kinds,
            });
        }
        kinds
    }

    #[test]
    fn the_description_has_these_paths_methods_statuses_and_errors() {
        use std::collections::BTreeSet;
        let described: serde_json::Value = serde_json::from_str(pages::OPENAPI).unwrap();
        let paths = described["paths"].as_object().unwrap();
        let errors = every_kind().into_iter();
        let statuses: BTreeSet<_> = errors.map(|k| mirror_status(k).to_string()).collect();
        let statuses: BTreeSet<_> = statuses.iter().map(|s| &s[..3]).chain(["200"]).collect();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut methods = |path: &str, expected: &[Method]| {
            let methods: BTreeSet<_> = paths[path].as_object().unwrap().keys().collect();
            let expected = expected.iter().map(|m| m.as_str().to_lowercase());
            let expected: BTreeSet<_> = expected.collect();
            assert!(methods.into_iter().eq(&expected), "{path}");
            assert!(Route::of(path).is_some(), "{path}");
            known.insert(path.to_owned());
        };
        for (path, method) in mirror::Method::ALL {
            methods(path, &[Method::POST]);
            if method != mirror::Method::Connection {
                let answers = paths[path]["post"]["responses"].as_object().unwrap();
                let answers: BTreeSet<_> = answers.keys().map(String::as_str).collect();
                assert_eq!(answers, statuses, "{path}");
                methods(&format!("/admin/v1/explain{path}"), &[Method::POST]);
            }
        }
        for (path, _) in PAGES {
            methods(path, &[Method::GET, Method::HEAD]);
        }
        let explain = admin::Call::Explain;
        for call in admin::Call::ALL.into_iter().filter(|c| *c != explain) {
            methods(&format!("/admin/v1/{}", call.name()), call.methods());
        }
        assert!(paths.keys().eq(&known), "{paths:?}");
        let errors = every_kind().into_iter().map(|kind| {
            let body = crate::wire::mirror::response::write_error(&Error::new(kind, "x"));
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let tag = body["_type"].as_str().unwrap();
            let members = &described["components"]["schemas"][tag]["properties"];
            let members: Vec<_> = members.as_object().unwrap().keys().collect();
            assert!(body.as_object().unwrap().keys().eq(members), "{tag}");
            format!("#/components/schemas/{tag}")
        });
        let described = described["components"]["schemas"]["Error"]["anyOf"]
            .as_array()
            .unwrap();
        let described = described
            .iter()
            .map(|s| s["$ref"].as_str().unwrap().to_owned());
        assert_eq!(errors.collect::<BTreeSet<_>>(), described.collect());
    }

    #[test]
    fn repeated_and_trailing_slashes_are_ignored() {
        for path in [
            "/api/metric",
            "//api/metric",
            "/api//metric/",
            "///api/metric//",
        ] {
            assert_eq!(
                Route::of(&normalized(path)),
                Some(Route::Mirror(mirror::Method::Metric)),
                "{path}"
            );
        }
        assert_eq!(
            Route::of(&normalized("//")),
            Some(Route::Asset(Asset::PAGE))
        );
        assert_eq!(Route::of(&normalized("/api")), None);
    }
}
