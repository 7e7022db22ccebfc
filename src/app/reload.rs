//! Replaces the configuration at run time.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use super::report::report;
use super::{App, exposure};
use crate::config::{Config, ConfigError};
use crate::files;
use crate::front::{Applied, ReloadReport, ReloadRequests};
use crate::telemetry::{logs, metrics};

/// The interval at which the file is checked.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The pause before an invalid configuration is tried again: the file of a secret may appear later
/// than the configuration that names it, as in Kubernetes.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// The source of a service's configuration.
pub struct ConfigSource {
    /// Loads it, or returns what is wrong.
    pub load: Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>,
    /// The file that it is in, if any.
    pub file: Option<PathBuf>,
}

impl ConfigSource {
    /// Loads the current configuration. An empty file does not mean the default configuration, which
    /// would open every API: it was truncated, by a full disk or in the middle of writing.
    fn read(&self) -> Result<Config, String> {
        let emptied =
            |path: &&PathBuf| files::read(path).is_ok_and(|text| text.trim_ascii().is_empty());
        match self.file.as_ref().filter(emptied) {
            Some(path) => Err(format!("{}: is empty", path.display())),
            None => (self.load)().map_err(|e| e.to_string()),
        }
    }
}

/// The running app, replaced as a whole, so that a request sees one configuration from beginning
/// to end.
pub(super) struct Running {
    app: ArcSwap<App>,
    /// The configuration at the start.
    first: Config,
}

impl Running {
    pub(super) fn new(app: App) -> Self {
        metrics::configured(app.clock.now());
        app.front.report(report(&app, &app.config, None));
        Self {
            first: app.config.clone(),
            app: ArcSwap::from_pointee(app),
        }
    }

    pub(super) fn app(&self) -> Arc<App> {
        self.app.load_full()
    }

    /// Replaces the running configuration by that of `source`; an invalid one changes nothing.
    async fn reload(&self, source: &Arc<ConfigSource>) -> Result<Applied, String> {
        let before = self.app();
        let (old, source) = (before.clone(), source.clone());
        // Files that it names may be on a mount that hangs, so no thread that serves reads them.
        let made = off_the_workers(move || {
            let config = source.read()?;
            let rebuilt = Handle::current().block_on(old.rebuild(&config));
            rebuilt.map_err(|e| e.to_string())
        });
        let made = made.await.unwrap_or_else(Err);
        let time = before.clock.now();
        metrics::reloaded(made.is_ok(), time);
        let read = |error| Some(ReloadReport { time, error });
        let app = made.inspect_err(|e| {
            error!("configuration reload failed, keeping the previous configuration: {e}");
            let failed = report(&before, &self.first, read(Some(e.clone())));
            before.front.report(failed);
        })?;
        app.front.report(report(&app, &self.first, read(None)));
        let mut applied = applied(&before, &app);
        applied.restart = only_at_start(&self.first, &app.config);
        logs::set_level(app.config.log.level);
        let address = self.first.server.listen;
        let known = exposure::warnings(&before.config, address);
        let warnings = exposure::warnings(&app.config, address).into_iter();
        for warning in warnings.filter(|w| !known.contains(w)) {
            warn!("{warning}");
        }
        let engine = app.engine.clone();
        self.app.store(Arc::new(app));
        drop(before);
        // Removed upstreams cannot be queried any more.
        let _ = spawn_blocking(move || engine.invalidate_removed()).await;
        info!("configuration reloaded: {applied}");
        Ok(applied)
    }
}

/// Reloads the configuration of `source` whenever that is requested, when its file has changed, and
/// repeatedly while it is invalid.
pub(super) async fn follow(running: Arc<Running>, source: ConfigSource, mut asked: ReloadRequests) {
    let source = Arc::new(source);
    let watched = Arc::new(Mutex::new(Watched::new(source.file.clone())));
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut again: Option<Instant> = None;
    loop {
        let answer = tokio::select! {
            answer = asked.next() => match answer {
                Some(answer) => Some(answer),
                None => return,
            },
            _ = looks.tick() => None,
        };
        let due = again.is_some_and(|at| Instant::now() >= at);
        let changed = match &answer {
            Some(_) => look(&watched, Watched::is_read).await,
            None => look(&watched, Watched::has_changed).await,
        };
        if answer.is_none() && !changed && !due {
            continue;
        }
        let outcome = running.reload(&source).await;
        let wrong = outcome.is_err() && source.file.is_some();
        again = wrong.then(|| Instant::now() + TRY_AGAIN);
        if let Some(answer) = answer {
            answer.send(outcome);
        }
    }
}

/// Returns the result of `work`, which may wait for files, on a thread that serves nothing; the error says
/// that it panicked.
async fn off_the_workers<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    spawn_blocking(work).await.map_err(|e| e.to_string())
}

/// Looks at the file of `watched`, and returns what `how` returns.
async fn look(watched: &Arc<Mutex<Watched>>, how: fn(&mut Watched) -> bool) -> bool {
    let watched = watched.clone();
    // What it knows is replaced whole, so it is sound even after a panic.
    let look = move || how(&mut watched.lock().unwrap_or_else(PoisonError::into_inner));
    off_the_workers(look).await.unwrap_or(false)
}

type FileContents = Result<Vec<u8>, std::io::ErrorKind>;

/// The contents of a file when it was loaded, to detect changes; empty without a file.
struct Watched {
    path: Option<PathBuf>,
    known: Option<FileContents>,
    /// Different contents at the last check: they may be half written.
    seen: Option<FileContents>,
}

impl Watched {
    fn new(path: Option<PathBuf>) -> Self {
        let mut watched = Self {
            path,
            known: None,
            seen: None,
        };
        watched.is_read();
        watched
    }

    fn says(&self) -> Option<FileContents> {
        let path = self.path.as_ref()?;
        Some(files::read(path).map_err(|e| e.kind()))
    }

    /// Notes that the file is about to be loaded, whatever its contents: then it has not changed.
    fn is_read(&mut self) -> bool {
        self.known = self.says();
        self.seen = None;
        false
    }

    /// Returns whether the file has new contents, unchanged since the last check.
    fn has_changed(&mut self) -> bool {
        let said = self.says();
        if said == self.known {
            self.seen = None;
            return false;
        }
        if self.seen != said {
            self.seen = said;
            return false;
        }
        self.known = said;
        self.seen = None;
        true
    }
}

/// Returns the differences of `app` to `before`.
fn applied(before: &App, app: &App) -> Applied {
    let mut applied = Applied::default();
    for made in &app.built {
        let name = made.settings.name.clone();
        let mut old = before.built.iter();
        match old.find(|old| old.settings.name == made.settings.name) {
            None => applied.added.push(name),
            Some(old) if Arc::ptr_eq(&old.upstream, &made.upstream) => applied.kept.push(name),
            Some(_) => applied.changed.push(name),
        }
    }
    for old in &before.built {
        let name = &old.settings.name;
        if !app.built.iter().any(|made| made.settings.name == *name) {
            metrics::upstream_gone(name);
            applied.removed.push(name.clone());
        }
    }
    for pattern in &before.config.targets {
        if !app.config.targets.contains(pattern) {
            metrics::upstream_gone(&pattern.to_string());
        }
    }
    applied
}

/// Returns the changed keys that take effect only at a start.
pub(super) fn only_at_start(first: &Config, now: &Config) -> Vec<&'static str> {
    let keys = [
        ("server.listen", first.server.listen == now.server.listen),
        ("cache.memory", first.cache_memory == now.cache_memory),
        ("cache.disk", first.cache_disk == now.cache_disk),
        ("cache.shared", first.cache_shared == now.cache_shared),
        ("replicas", first.replicas == now.replicas),
        ("log.format", first.log.json == now.log.json),
        ("traces", first.traces == now.traces),
    ];
    let others = keys.into_iter().filter(|(_, same)| !same);
    others.map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::Method;

    use super::*;
    use crate::adapters::{Exchange, Next, Request};
    use crate::clock::Clock;
    use crate::front::Reloads;
    use crate::model::Millis;
    use crate::telemetry::trace::Trace;
    use crate::upstream::CallContext;

    #[tokio::test(start_paused = true)]
    async fn an_invalid_configuration_is_tried_again_until_it_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        std::fs::write(&path, "a").unwrap();
        let good = || crate::config::parse("", "c", &BTreeMap::new());
        let clock = Arc::new(crate::clock::SystemClock::default());
        let app = App::build(&good().unwrap(), clock).await.unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = reads.clone();
        let source = ConfigSource {
            // What it needs comes later.
            load: Box::new(move || match counted.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => crate::config::parse("=", "c", &BTreeMap::new()),
                _ => good(),
            }),
            file: Some(path.clone()),
        };
        let (_reloads, asked) = Reloads::new();
        tokio::spawn(follow(Arc::new(Running::new(app)), source, asked));
        tokio::time::sleep(LOOK_EVERY / 2).await;
        std::fs::write(&path, "b").unwrap();
        for (wait, expected) in [
            (LOOK_EVERY * 3, 1),
            (TRY_AGAIN + LOOK_EVERY, 2),
            (TRY_AGAIN + LOOK_EVERY, 3),
            (TRY_AGAIN * 9, 3),
        ] {
            tokio::time::sleep(wait).await;
            assert_eq!(reads.load(Ordering::Relaxed), expected);
        }
    }

    #[tokio::test]
    async fn a_reload_that_waits_for_files_holds_up_nothing_else() {
        let good = || crate::config::parse("", "c", &BTreeMap::new());
        let clock = Arc::new(crate::clock::SystemClock::default());
        let app = App::build(&good().unwrap(), clock).await.unwrap();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let steps = Arc::new(AtomicUsize::new(0));
        let counted = steps.clone();
        let source = ConfigSource {
            load: Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                let opened = gate.lock().unwrap().recv_timeout(Duration::from_secs(60));
                assert!(opened.is_ok(), "this thread runs everything else");
                good()
            }),
            file: None,
        };
        let (reloads, asked) = Reloads::new();
        tokio::spawn(follow(Arc::new(Running::new(app)), source, asked));
        let asked = tokio::spawn(async move { reloads.ask().await });
        while steps.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        open.send(()).unwrap();
        assert!(asked.await.unwrap().unwrap().is_ok());
    }

    #[test]
    fn a_file_has_changed_once_two_checks_see_the_same_new_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        std::fs::write(&path, "a").unwrap();
        let mut watched = Watched::new(Some(path.clone()));
        assert!(!watched.has_changed());
        std::fs::write(&path, "").unwrap();
        assert!(!watched.has_changed(), "it may be half written");
        std::fs::write(&path, "b").unwrap();
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
        assert!(!watched.has_changed(), "once");
        std::fs::write(&path, "c").unwrap();
        assert!(!watched.has_changed());
        std::fs::write(&path, "b").unwrap();
        assert!(!watched.has_changed(), "as it was");
        std::fs::remove_file(&path).unwrap();
        assert!(!watched.has_changed());
        assert!(watched.has_changed(), "one that is gone is said");
        // What was read meanwhile is what it is compared with.
        std::fs::write(&path, "d").unwrap();
        watched.is_read();
        std::fs::write(&path, "b").unwrap();
        assert!(!watched.has_changed());
        assert!(watched.has_changed(), "as before what was read last");
        assert!(!Watched::new(None).has_changed());
    }

    #[derive(Debug)]
    struct Standing;

    impl Clock for Standing {
        fn now(&self) -> Millis {
            1_790_000_040_000
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// Makes a call to the upstream of `app`.
    async fn call(app: &App) {
        let exchange = Exchange {
            request: Request {
                method: Method::GET,
                path: "/".into(),
                headers: Vec::new(),
                body: Bytes::new(),
                units: 0,
            },
            read: Arc::new(|_| Ok(Next::Done(()))),
            bill: None,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let context = CallContext::new(None, deadline, Trace::default());
        let client = &app.built[0].upstream.client;
        assert!(client.run(exchange, &context).await.is_ok());
    }

    #[tokio::test]
    async fn a_reload_that_fails_late_takes_nothing_from_the_running_upstreams() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "key").unwrap();
        let config = |more: &str| {
            let limit = "rate_limit = { per_second = 50, burst = 50, per_hour = 30 }";
            let toml =
                format!("[[upstream]]\nname = \"counted\"\nkind = \"demo\"\n{limit}\n{more}");
            crate::config::parse(&toml, "c.toml", &BTreeMap::new()).unwrap()
        };
        let used = |app: &App| {
            let upstream = &app.built[0].upstream;
            upstream.client.state(Standing.now()).budgets[0].used
        };
        let first = App::build(&config(""), Arc::new(Standing)).await.unwrap();
        call(&first).await;
        let changed = "refresh = \"55s\"\n";
        let bad = config(&format!(
            "{changed}[server]\napi_key = {{ file = {key:?} }}\n"
        ));
        // It is gone once the configuration has been read.
        std::fs::remove_file(&key).unwrap();
        assert!(first.rebuild(&bad).await.is_err());
        call(&first).await;
        assert_eq!(used(&first), 2);
        let next = first.rebuild(&config(changed)).await.unwrap();
        assert!(!Arc::ptr_eq(
            &first.built[0].upstream,
            &next.built[0].upstream
        ));
        assert_eq!(used(&next), 2);
        // Of a request that came before.
        call(&first).await;
        assert_eq!(used(&next), 3);
    }

    #[tokio::test]
    async fn access_rules_are_rebuilt_only_if_they_change() {
        let env = std::collections::BTreeMap::new();
        let config = |text: &str| crate::config::parse(text, "c.toml", &env).unwrap();
        let clock = Arc::new(crate::clock::SystemClock::default());
        let rules = "[access.mirror]\nnetworks = [\"10.0.0.0/8\"]\n";
        let first = App::build(&config(rules), clock).await.unwrap();
        let same = format!("{rules}[server]\nmax_points = 7\n");
        let same = first.rebuild(&config(&same)).await.unwrap();
        assert!(Arc::ptr_eq(&first.front.access(), &same.front.access()));
        let other = same.rebuild(&config("")).await.unwrap();
        assert!(!Arc::ptr_eq(&same.front.access(), &other.front.access()));
    }
}
