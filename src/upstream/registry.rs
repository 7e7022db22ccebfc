//! The choice of an upstream by a request's connection details.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connections::UrlOrigin;
use super::{Forward, SharedLimits, Upstream};
use crate::model::{Details, Error, Kind, Pattern, TargetUrl};

/// Builds the upstream for an allowed target; the name is for its metrics. It shares the limits of
/// another with the same host, if there is one.
pub type TargetFactory =
    Box<dyn Fn(String, TargetUrl, Option<SharedLimits>) -> Arc<Upstream> + Send + Sync>;

/// Most targets that are known at once besides the configured upstreams.
const MAX_TARGETS: usize = 256;

/// The configured upstreams, and targets that connection details may name by themselves.
pub struct Registry {
    upstreams: Vec<Arc<Upstream>>,
    default: String,
    allow: Vec<Pattern>,
    make: TargetFactory,
    targets: Mutex<HashMap<TargetUrl, Arc<Upstream>>>,
}

impl Registry {
    /// Returns a registry in which `default` names the upstream for details that name none.
    pub fn new(
        upstreams: Vec<Arc<Upstream>>,
        default: String,
        allow: Vec<Pattern>,
        make: TargetFactory,
    ) -> Self {
        Self {
            upstreams,
            default,
            allow,
            make,
            targets: Mutex::default(),
        }
    }

    /// Takes over the targets of `before`, which this replaces.
    pub fn keep_targets_of(&self, before: &Self) {
        let known = before.targets().clone();
        *self.targets() = known;
    }

    /// Returns the identities of all that is known.
    pub fn ids(&self) -> HashSet<u64> {
        let upstreams = self.upstreams.iter().map(|u| u.id());
        upstreams
            .chain(self.targets().values().map(|u| u.id()))
            .collect()
    }

    fn targets(&self) -> MutexGuard<'_, HashMap<TargetUrl, Arc<Upstream>>> {
        // Entries are added and removed whole, so the map is sound even after a panic.
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the configured upstreams in their order.
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// Returns the configured upstream `name`, or the default one.
    pub fn named(&self, name: Option<&str>) -> Option<&Arc<Upstream>> {
        let name = name.unwrap_or(&self.default);
        self.upstreams.iter().find(|u| u.name() == name)
    }

    /// Returns the upstream that `details` pick, if they may.
    pub fn pick(&self, details: &Details) -> Result<Arc<Upstream>, Error> {
        let upstream = self.meant(details)?;
        if upstream.forward == Forward::Nothing {
            known_keys(details)?;
        }
        Ok(upstream)
    }

    fn meant(&self, details: &Details) -> Result<Arc<Upstream>, Error> {
        if let Some(name) = &details.upstream {
            return self.named(Some(name)).cloned().ok_or_else(|| {
                let names: Vec<_> = self.upstreams.iter().map(|u| u.name()).collect();
                let message = format!(
                    "there is no upstream of this name; configured are: {}",
                    names.join(", ")
                );
                denied("connectionDetails.upstream", message)
            });
        }
        if let Some(url) = &details.url {
            let has = |u: &&Arc<Upstream>| u.client.urls().any(|mine| mine == url);
            return match self.upstreams.iter().find(has) {
                Some(upstream) => Ok(upstream.clone()),
                None => self.target(url),
            };
        }
        self.named(None)
            .cloned()
            .ok_or_else(|| denied("connectionDetails", "there is no default upstream".into()))
    }

    fn target(&self, url: &TargetUrl) -> Result<Arc<Upstream>, Error> {
        let Some(pattern) = self.allow.iter().find(|p| p.allows(url)) else {
            let message = format!(
                "the target {url} is not allowed: add \"{}:{}\" to `allow` in the section [targets], or configure an [[upstream]] with this address",
                url.host(),
                url.port(),
                url = url.as_str(),
            );
            return Err(denied("connectionDetails", message));
        };
        let mut targets = self.targets();
        if let Some(known) = targets.get(url) {
            return Ok(known.clone());
        }
        if targets.len() >= MAX_TARGETS {
            // Nobody uses those now; their limits start afresh with the next request.
            targets.retain(|_, upstream| Arc::strong_count(upstream) > 1);
        }
        if targets.len() >= MAX_TARGETS {
            let message = format!("{MAX_TARGETS} targets are in use at once");
            return Err(Error::new(Kind::Overloaded, message));
        }
        let origin = UrlOrigin::of(url.as_str());
        let same_host = |u: &&Arc<Upstream>| {
            let mut urls = u.client.urls();
            urls.any(|url| UrlOrigin::of(url.as_str()) == origin)
        };
        let beside = self.upstreams.iter().find(same_host);
        let beside = beside.or_else(|| targets.values().find(same_host));
        let shared = beside.map(|upstream| upstream.client.shared_limits());
        let made = (self.make)(pattern.to_string(), url.clone(), shared);
        targets.insert(url.clone(), made.clone());
        Ok(made)
    }
}

/// Refuses keys of `details` that have no meaning: the upstream is sent none, so a misspelled key
/// would pick another upstream than was meant.
fn known_keys(details: &Details) -> Result<(), Error> {
    let unknown = details
        .rest
        .keys()
        .find(|key| !Details::KEYS.contains(&key.as_str()));
    let Some(key) = unknown else {
        return Ok(());
    };
    let shown: String = key.chars().filter(|c| !c.is_control()).take(40).collect();
    let distance = |known: &&str| strsim::damerau_levenshtein(&shown.to_lowercase(), known);
    let nearest = Details::KEYS
        .into_iter()
        .min_by_key(|known| distance(known));
    let nearest = nearest.filter(|known| distance(known) <= 3);
    let meant = nearest.map_or_else(String::new, |known| format!("; did you mean {known:?}?"));
    let known = Details::KEYS.join(", ");
    let message = format!("is not known to this kind of upstream{meant} Known are {known}");
    Err(Error::invalid(
        format!("connectionDetails.{shown}"),
        message,
    ))
}

fn denied(path: &str, message: String) -> Error {
    let mut error = Error::new(Kind::TargetNotAllowed, message);
    error.field = Some(path.to_owned());
    error
}
