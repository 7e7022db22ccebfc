//! Values read from files, such as certificates and secrets, that are reloaded when the files change.
//!
//! There is no watcher: readers of the value check the files, at most every [`CHECK_EVERY`]. This
//! works wherever files can be read, mounted secrets included.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{error, info};

use crate::clock::Clock;
use crate::files;
use crate::telemetry::metrics;

/// The least time between two checks of the files.
pub const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The contents of the files, in the order of their paths.
type Contents = Vec<Vec<u8>>;
type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// A value that follows its files. An invalid change is logged, shows in
/// `heliostat_file_errors`, and leaves the value unchanged.
pub struct Reloadable<T> {
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
}

impl<T> Drop for FileSource<T> {
    fn drop(&mut self) {
        if self.wrong.load(Ordering::Relaxed) {
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
        Self {
            current: ArcSwap::from_pointee(value),
            source: None,
        }
    }

    /// Returns whether the value never changes.
    pub fn is_fixed(&self) -> bool {
        self.source.is_none()
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
        let mut live = Self::fixed(value);
        if !paths.is_empty() {
            metrics::file_error(&name, false);
            live.source = Some(FileSource {
                name,
                paths,
                make: Box::new(make),
                checked: AtomicU64::new(millis(clock.as_ref())),
                clock,
                seen: Mutex::new(Ok(contents)),
                wrong: AtomicBool::new(false),
            });
        }
        Ok(live)
    }

    /// Returns the value, after checking the files if a check is due.
    pub fn get(&self) -> Arc<T> {
        if let Some(source) = &self.source
            && let Some(fresh) = source.look()
        {
            self.current.store(Arc::new(fresh));
        }
        self.current.load_full()
    }
}

impl<T> FileSource<T> {
    /// Returns a new value if a check is due and the files have new, valid contents.
    fn look(&self) -> Option<T> {
        let now = millis(self.clock.as_ref());
        let checked = self.checked.load(Ordering::Relaxed);
        if now.saturating_sub(checked) < CHECK_EVERY.as_millis() as u64 {
            return None;
        }
        let mine =
            self.checked
                .compare_exchange(checked, now, Ordering::Relaxed, Ordering::Relaxed);
        // Another thread is checking.
        mine.ok()?;
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
    fn contents_are_not_shown_in_debug_output() {
        assert!(!format!("{:?}", Reloadable::fixed("s3cret")).contains("s3cret"));
    }
}
