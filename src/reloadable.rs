//! Values read from files, such as certificates and secrets, that are reloaded when the files change.
//!
//! There is no watcher: readers of the value have the files checked, at most every [`CHECK_EVERY`]. This
//! works wherever files can be read, mounted secrets included. A thread of its own reads them, as they may
//! be on a mount that hangs: the reader waits for it once, for a second at most, and from then on uses the value
//! there is until the files answer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{error, info};

use crate::clock::Clock;
use crate::files;
use crate::telemetry::metrics;

/// The least time between two checks of the files.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The longest time that a reader of the value waits for a check. Files that answer take far less.
const PATIENCE: Duration = Duration::from_secs(1);

/// The contents of the files, in the order of their paths.
type Contents = Vec<Vec<u8>>;
type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// A value that follows its files. An invalid change is logged, shows in
/// `heliostat_file_errors`, and leaves the value unchanged.
pub struct Reloadable<T>(Arc<ReloadableState<T>>);

struct ReloadableState<T> {
    current: ArcSwap<T>,
    source: Option<FileSource<T>>,
}

/// The source of a value.
struct FileSource<T> {
    /// Its name in logs and metrics, such as `server.tls`.
    name: String,
    paths: Vec<PathBuf>,
    make: Make<T>,
    clock: Arc<dyn Clock>,
    /// The time of the last check, in milliseconds of monotonic time.
    checked: AtomicU64,
    /// The contents then, or why they could not be read.
    seen: Mutex<Result<Contents, String>>,
    /// Whether those contents were invalid.
    wrong: AtomicBool,
    /// Whether a thread checks the files.
    checking: AtomicBool,
    /// Whether the last check took longer than a reader waits.
    late: AtomicBool,
}

/// A check of the files until it is dropped.
struct Check<'a>(&'a AtomicBool);

impl Drop for Check<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<T> Drop for FileSource<T> {
    fn drop(&mut self) {
        if self.wrong.load(Ordering::Relaxed) || self.late.load(Ordering::Relaxed) {
            // Files that are no longer used cause no alert.
            metrics::file_error(&self.name, false);
        }
    }
}

impl<T> fmt::Debug for Reloadable<T> {
    /// Omits the value, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloadable(…)")
    }
}

impl<T> Reloadable<T> {
    /// Creates a value without files.
    pub fn fixed(value: T) -> Self {
        Self::of(value, None)
    }

    fn of(value: T, source: Option<FileSource<T>>) -> Self {
        Self(Arc::new(ReloadableState {
            current: ArcSwap::from_pointee(value),
            source,
        }))
    }

    /// Returns whether the value never changes.
    pub fn is_fixed(&self) -> bool {
        self.0.source.is_none()
    }

    /// Returns what `make` makes of the files at `paths`, now and whenever they change; `name` is
    /// for logs and metrics. The error says what is wrong now.
    pub fn new(
        name: String,
        paths: Vec<PathBuf>,
        clock: Arc<dyn Clock>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&paths)?;
        let value = make(&contents).map_err(|e| format!("{name}: {e}"))?;
        let source = (!paths.is_empty()).then(|| {
            metrics::file_error(&name, false);
            FileSource {
                name,
                paths,
                make: Box::new(make),
                checked: AtomicU64::new(millis(clock.as_ref())),
                clock,
                seen: Mutex::new(Ok(contents)),
                wrong: AtomicBool::new(false),
                checking: AtomicBool::new(false),
                late: AtomicBool::new(false),
            }
        });
        Ok(Self::of(value, source))
    }
}

impl<T: Send + Sync + 'static> Reloadable<T> {
    /// Returns the value, after a check of the files if one is due and they answer.
    pub fn get(&self) -> Arc<T> {
        self.check_if_due();
        self.0.current.load_full()
    }

    /// Returns a copy of the value, after the same check.
    pub fn copy(&self) -> T
    where
        T: Clone,
    {
        self.check_if_due();
        T::clone(&self.0.current.load())
    }

    fn check_if_due(&self) {
        if let Some(source) = &self.0.source
            && source.is_due()
        {
            self.check(source, PATIENCE);
        }
    }

    /// Has the files checked, and waits for that for at most `patience`, unless the last check took longer.
    fn check(&self, source: &FileSource<T>, patience: Duration) {
        if source.checking.swap(true, Ordering::AcqRel) {
            source.is_late();
            return;
        }
        let inner = self.0.clone();
        let (tell, told) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("files".into());
        let checking = thread.spawn(move || {
            if let Some(source) = &inner.source {
                let _check = Check(&source.checking);
                if let Some(fresh) = source.look() {
                    inner.current.store(Arc::new(fresh));
                }
            }
            drop(tell);
        });
        if let Err(e) = checking {
            error!("{}: no thread can be started: {e}", source.name);
            drop(Check(&source.checking));
            return;
        }
        if !source.late.load(Ordering::Relaxed)
            && told.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            source.is_late();
        }
    }
}

impl<T> FileSource<T> {
    /// Returns whether a check is due, to one caller.
    fn is_due(&self) -> bool {
        let now = millis(self.clock.as_ref());
        let checked = self.checked.load(Ordering::Relaxed);
        let order = Ordering::Relaxed;
        now.saturating_sub(checked) >= CHECK_EVERY.as_millis() as u64
            && (self.checked)
                .compare_exchange(checked, now, order, order)
                .is_ok()
    }

    /// Notes that a check takes longer than a reader waits.
    fn is_late(&self) {
        if !self.late.swap(true, Ordering::Relaxed) {
            metrics::file_error(&self.name, true);
            error!(
                "{}: its files do not answer, keeping the previous contents until they do",
                self.name
            );
        }
    }

    /// Returns a new value if the files have new, valid contents.
    fn look(&self) -> Option<T> {
        let fresh = self.changed();
        if self.late.swap(false, Ordering::Relaxed) {
            metrics::file_error(&self.name, self.wrong.load(Ordering::Relaxed));
        }
        fresh
    }

    fn changed(&self) -> Option<T> {
        let contents = read(&self.paths);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == contents {
            return None;
        }
        let made = match &contents {
            Ok(contents) => (self.make)(contents),
            Err(e) => Err(e.clone()),
        };
        *seen = contents;
        metrics::file_error(&self.name, made.is_err());
        self.wrong.store(made.is_err(), Ordering::Relaxed);
        match made {
            Ok(value) => {
                info!("{}: reloaded its changed files", self.name);
                Some(value)
            }
            Err(e) => {
                error!(
                    "{}: reloading its changed files failed, keeping the previous contents: {e}",
                    self.name
                );
                None
            }
        }
    }
}

fn millis(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.monotonic().as_millis()).unwrap_or(u64::MAX)
}

fn read(paths: &[PathBuf]) -> Result<Contents, String> {
    let one = |path: &PathBuf| contents(path);
    paths.iter().map(one).collect()
}

/// Reads the file at `path`. The error names it.
fn contents(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path).map_err(|e| format!("the file {path:?} cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> i64 {
            0
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn a_value_follows_its_file_and_stays_while_the_file_is_invalid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n");
        std::fs::write(&path, "1").unwrap();
        let clock = Arc::new(Hand::default());
        let number = |contents: &[Vec<u8>]| {
            let text = std::str::from_utf8(&contents[0]).map_err(|e| e.to_string())?;
            text.parse::<u32>().map_err(|e| e.to_string())
        };
        let live = Reloadable::new("n".into(), vec![path.clone()], clock.clone(), number).unwrap();
        let later = || clock.0.fetch_add(5000, Ordering::Relaxed);
        std::fs::write(&path, "2").unwrap();
        assert_eq!(*live.get(), 1, "not looked at yet");
        later();
        assert_eq!(*live.get(), 2);
        std::fs::write(&path, "x").unwrap();
        later();
        assert_eq!(*live.get(), 2);
        std::fs::remove_file(&path).unwrap();
        later();
        assert_eq!(*live.get(), 2);
        std::fs::write(&path, "3").unwrap();
        later();
        assert_eq!(*live.get(), 3);
        let missing = Reloadable::new("n".into(), vec![folder.path().join("no")], clock, number);
        assert!(missing.unwrap_err().contains("no\" cannot be read"));
    }

    #[test]
    fn nobody_waits_for_files_that_do_not_answer_and_they_count_when_they_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n");
        std::fs::write(&path, "1").unwrap();
        let clock = Arc::new(Hand::default());
        let (hangs, gate) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let (hung, shut) = (hangs.clone(), gate.clone());
        let checks = Arc::new(AtomicU64::new(0));
        let counted = checks.clone();
        // Runs where the files are read.
        let make = move |contents: &[Vec<u8>]| {
            counted.fetch_add(1, Ordering::SeqCst);
            if hung.load(Ordering::SeqCst) {
                drop(shut.lock());
            }
            Ok(contents[0].clone())
        };
        let live = Reloadable::new("n".into(), vec![path.clone()], clock.clone(), make).unwrap();
        let later = || clock.0.fetch_add(5000, Ordering::Relaxed);
        let away = gate.lock().unwrap();
        hangs.store(true, Ordering::SeqCst);
        std::fs::write(&path, "2").unwrap();
        later();
        let source = live.0.source.as_ref().unwrap();
        assert!(source.is_due());
        live.check(source, Duration::from_millis(1));
        for _ in 0..1000 {
            later();
            assert_eq!(*live.get(), b"1");
        }
        assert!(source.late.load(Ordering::SeqCst));
        while checks.load(Ordering::SeqCst) < 2 {
            std::thread::yield_now();
        }
        hangs.store(false, Ordering::SeqCst);
        drop(away);
        while source.checking.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        assert_eq!(*live.get(), b"2");
        assert!(!source.late.load(Ordering::SeqCst));
        assert_eq!(checks.load(Ordering::SeqCst), 2, "one thread at a time");
    }

    #[test]
    fn contents_are_not_shown_in_debug_output() {
        assert!(!format!("{:?}", Reloadable::fixed("s3cret")).contains("s3cret"));
    }
}
