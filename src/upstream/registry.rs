//! The choice of an upstream by a request's connection details.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::connections::UrlOrigin;
use super::{Forward, Identity, SharedLimits, Upstream};
use crate::model::{Details, Error, Kind, Pattern, TargetUrl};
use crate::telemetry::metrics;

/// Builds the upstream for an allowed target, with this identity of its data; the name is for its
/// metrics. It shares the limits of another with the same host, if there is one.
pub type TargetFactory =
    Box<dyn Fn(String, TargetUrl, Identity, Option<SharedLimits>) -> Arc<Upstream> + Send + Sync>;

/// Most targets that are known at once besides the configured upstreams.
const MAX_TARGETS: usize = 256;

/// Most hosts whose limits are known at once besides those of configured upstreams. Limits of hosts
/// that nobody calls are kept until they are as new.
const MAX_HOSTS: usize = 4 * MAX_TARGETS;

/// The limits of hosts that only targets lead to. They outlive the targets, and reloads: a host has
/// a burst once, however often its targets are built.
type HostLimits = Mutex<HashMap<UrlOrigin, SharedLimits>>;

/// The configured upstreams, and targets that connection details may name by themselves.
pub struct Registry {
    upstreams: Vec<Arc<Upstream>>,
    default: String,
    allow: Vec<Pattern>,
    make: TargetFactory,
    targets: Mutex<HashMap<TargetUrl, Arc<Upstream>>>,
    hosts: Arc<HostLimits>,
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
            hosts: Arc::default(),
        }
    }

    /// Makes this the successor of `before`: limits of targets count on, and targets that are still
    /// allowed keep their data. They are built anew, unless their settings are the `same` and
    /// their host has the same limits as before.
    pub fn succeeding(mut self, before: &Self, same: bool) -> Self {
        self.hosts = before.hosts.clone();
        let known = before.targets().clone();
        let mut targets = HashMap::new();
        for (url, old) in known {
            let Some(pattern) = self.allowing(&url) else {
                continue;
            };
            // They are others where an upstream with this host was added, changed or removed.
            let Ok(limits) = self.limits(&url) else {
                continue;
            };
            let mine = old.client.shared_limits();
            let target = match &limits {
                Some(limits) if same && limits.are(&mine) => old,
                _ => self.build(pattern, &url, old.identity.clone(), limits),
            };
            targets.insert(url, target);
        }
        self.targets = Mutex::new(targets);
        self
    }

    /// Sets the gauges that change with time alone.
    pub fn observe(&self) {
        let patterns = self.allow.iter().map(|pattern| (pattern.to_string(), 0));
        let mut open: HashMap<String, usize> = patterns.collect();
        for upstream in &self.upstreams {
            upstream.client.observe();
        }
        for upstream in self.upstreams.iter().chain(self.targets().values()) {
            *open.entry(upstream.name().to_owned()).or_default() += upstream.client.open_breakers();
        }
        for (name, open) in open {
            metrics::breakers_open(&name, open);
        }
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

    /// Returns the upstream or target whose data has the number `id`.
    pub fn with_id(&self, id: u64) -> Option<Arc<Upstream>> {
        let configured = self.upstreams.iter().find(|u| u.id() == id).cloned();
        configured.or_else(|| self.targets().values().find(|u| u.id() == id).cloned())
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

    fn allowing(&self, url: &TargetUrl) -> Option<&Pattern> {
        self.allow.iter().find(|pattern| pattern.allows(url))
    }

    fn target(&self, url: &TargetUrl) -> Result<Arc<Upstream>, Error> {
        let Some(pattern) = self.allowing(url) else {
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
            // Nobody uses those now.
            targets.retain(|_, upstream| Arc::strong_count(upstream) > 1);
        }
        if targets.len() >= MAX_TARGETS {
            let message = format!("{MAX_TARGETS} targets are in use at once");
            return Err(Error::new(Kind::Overloaded, message));
        }
        let limits = self.limits(url)?;
        let made = self.build(pattern, url, Identity::new(), limits);
        targets.insert(url.clone(), made.clone());
        Ok(made)
    }

    /// Returns the limits of the host of `url`, if it has any; fails if there is no room for new ones.
    fn limits(&self, url: &TargetUrl) -> Result<Option<SharedLimits>, Error> {
        let origin = UrlOrigin::of(url.as_str());
        let mut configured = self.upstreams.iter().filter(|u| {
            let mut urls = u.client.urls();
            urls.any(|url| UrlOrigin::of(url.as_str()) == origin)
        });
        if let Some(upstream) = configured.next() {
            return Ok(Some(upstream.client.shared_limits()));
        }
        let mut hosts = self.hosts();
        if let Some(limits) = hosts.get(&origin) {
            return Ok(Some(limits.clone()));
        }
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, limits| !limits.are_as_new());
        }
        if hosts.len() >= MAX_HOSTS {
            let message = format!("{MAX_HOSTS} hosts of targets are in use at once");
            return Err(Error::new(Kind::Overloaded, message));
        }
        Ok(None)
    }

    /// Builds the target `url` that `pattern` allows, and takes in its limits if it has no `limits` of
    /// its host.
    fn build(
        &self,
        pattern: &Pattern,
        url: &TargetUrl,
        identity: Identity,
        limits: Option<SharedLimits>,
    ) -> Arc<Upstream> {
        let new = limits.is_none();
        let made = (self.make)(pattern.to_string(), url.clone(), identity, limits);
        if new {
            let origin = UrlOrigin::of(url.as_str());
            self.hosts().insert(origin, made.client.shared_limits());
        }
        made
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<UrlOrigin, SharedLimits>> {
        // Entries are added and removed whole, so the map is sound even after a panic.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
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
