//! The file in which what is used of budgets outlives the process. Its folder may be on a network that is
//! away, so it is read and written by a thread of its own, and nobody waits for that for long.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::Millis;
use crate::store::lease::Predecessors;

/// Most bytes of the file.
const LONGEST_FILE: u64 = 64 << 10;

/// The format of the file; a file of another is not read.
const VERSION: u32 = 1;

/// Most time that the start waits for the file. It is read all the same when its folder comes back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time that a change may wait to be written before the log says so.
const OVERDUE: Duration = Duration::from_secs(10);

#[derive(Deserialize, Serialize)]
struct Contents {
    version: u32,
    windows: Vec<Saved>,
}

/// The usage of one hour, day or month, as stored in the file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(super) struct Saved {
    pub(super) millis: Millis,
    pub(super) index: i64,
    pub(super) used: u32,
    /// The processes that have used it, where replicas keep budgets together: the last first.
    #[serde(default)]
    pub(super) written_by: Predecessors,
}

/// The place of the file.
#[derive(Clone, Debug)]
pub struct BudgetPath {
    /// Its path.
    pub path: PathBuf,
    /// Whether it is written, not only read: one process writes it.
    pub written: bool,
}

impl BudgetPath {
    /// Returns the place of the budgets of units, beside that of the budgets of calls.
    pub(super) fn of_units(&self) -> Self {
        Self {
            path: self.path.with_extension("units"),
            ..*self
        }
    }
}

/// Takes over what the file said.
type Restore = Box<dyn Fn(&[Saved]) + Send + Sync>;

/// Returns what the file is to say.
type Save = Box<dyn Fn() -> Vec<Saved> + Send + Sync>;

/// Reads and writes one file.
pub(super) struct BudgetFile {
    file: Arc<File>,
}

struct File {
    path: PathBuf,
    written: bool,
    restore: Restore,
    save: Save,
    disk: FileAccess,
    progress: Mutex<Progress>,
}

/// The reading and writing of the file.
#[derive(Clone, Copy)]
struct FileAccess {
    read: fn(&Path) -> io::Result<Vec<Saved>>,
    write: fn(&Path, Vec<Saved>) -> io::Result<()>,
}

const DISK: FileAccess = FileAccess { read, write };

/// The usage that is being written, and the usage that waits for it.
#[derive(Debug, Default)]
struct Progress {
    /// Since when there has been something that the file does not say.
    since: Option<Instant>,
    /// Whether something has changed since the last write began.
    changed: bool,
    /// Whether a thread reads or writes.
    running: bool,
    /// Whether the log has said that it takes too long.
    said: bool,
}

impl BudgetFile {
    /// Returns the file at `place`, after `restore` has taken over what it says.
    pub(super) fn open(place: BudgetPath, restore: Restore, save: Save) -> Self {
        Self::over(DISK, place, restore, save, PATIENCE)
    }

    fn over(
        disk: FileAccess,
        place: BudgetPath,
        restore: Restore,
        save: Save,
        patience: Duration,
    ) -> Self {
        let progress = Progress {
            running: true,
            ..Progress::default()
        };
        let file = Arc::new(File {
            path: place.path,
            written: place.written,
            restore,
            save,
            disk,
            progress: Mutex::new(progress),
        });
        let (tell, told) = mpsc::channel();
        let reading = file.clone();
        std::thread::spawn(move || {
            reading.restore();
            // Nobody may wait for it any more.
            let _ = tell.send(());
            reading.write_all();
        });
        if told.recv_timeout(patience).is_err() {
            warn!(
                path = %file.path.display(),
                "a budget's state could not be read within {patience:?}: the budget begins anew, until its folder answers"
            );
        }
        Self { file }
    }

    /// Has it written, if it is, for something has changed. Changes that come while it is written are
    /// written by the same thread.
    pub(super) fn changed(&self) {
        if !self.file.written {
            return;
        }
        let now = Instant::now();
        let mut progress = self.file.progress();
        progress.changed = true;
        let since = *progress.since.get_or_insert(now);
        if progress.running {
            if now.duration_since(since) >= OVERDUE && !progress.said {
                progress.said = true;
                warn!(
                    path = %self.file.path.display(),
                    "a budget's state has not been written for {OVERDUE:?}: its folder does not answer"
                );
            }
            return;
        }
        progress.running = true;
        drop(progress);
        let file = self.file.clone();
        std::thread::spawn(move || file.write_all());
    }

    /// Returns for how long there has been something that the file does not say.
    pub(super) fn unsaved(&self) -> Duration {
        let since = self.file.progress().since;
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Waits until all is written.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        while self.file.progress().running {
            std::thread::yield_now();
        }
    }
}

impl File {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Its members are changed one by one, and each is sound.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restore(&self) {
        match (self.disk.read)(&self.path) {
            Ok(saved) => (self.restore)(&saved),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => warn!(path = %self.path.display(), "a budget's state cannot be read: {e}"),
        }
    }

    /// Writes until nothing has changed.
    fn write_all(&self) {
        loop {
            let mut progress = self.progress();
            if !progress.changed {
                progress.running = false;
                return;
            }
            progress.changed = false;
            drop(progress);
            let began = Instant::now();
            let written = (self.disk.write)(&self.path, (self.save)());
            let mut progress = self.progress();
            match written {
                Ok(()) => {
                    progress.since = progress.changed.then_some(began);
                    if std::mem::take(&mut progress.said) {
                        info!(path = %self.path.display(), "a budget's state is written again");
                    }
                }
                Err(e) => {
                    warn!(path = %self.path.display(), "a budget's state cannot be written: {e}");
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Saved>> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() || about.len() > LONGEST_FILE {
        let message = "it is not a regular file, or too long for the state of budgets";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let contents: Contents = serde_json::from_slice(&std::fs::read(path)?)?;
    if contents.version == VERSION {
        Ok(contents.windows)
    } else {
        let message = format!("version {} is not known", contents.version);
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

/// Writes beside and renames, so that the file is always whole.
fn write(path: &Path, windows: Vec<Saved>) -> io::Result<()> {
    let contents = Contents {
        version: VERSION,
        windows,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = Path::new(&beside);
    // A file or link that is already there is not written to.
    match std::fs::remove_file(beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut new = std::fs::OpenOptions::new();
    let mut to = new.write(true).create_new(true).open(beside)?;
    to.write_all(&serde_json::to_vec(&contents)?)?;
    drop(to);
    std::fs::rename(beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    static AWAY: AtomicBool = AtomicBool::new(true);

    fn until_it_is_back() {
        while AWAY.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    fn written(path: PathBuf) -> BudgetPath {
        let written = true;
        BudgetPath { path, written }
    }

    #[test]
    fn nobody_waits_for_a_folder_that_is_away_and_it_is_read_and_written_when_it_is_back() {
        let away = FileAccess {
            read: |_| {
                until_it_is_back();
                Ok(vec![Saved {
                    millis: 1,
                    index: 1,
                    used: 7,
                    written_by: Predecessors::default(),
                }])
            },
            write: |_, _| {
                until_it_is_back();
                Ok(())
            },
        };
        let restored = Arc::new(AtomicU32::new(0));
        let told = restored.clone();
        let restore = move |saved: &[Saved]| told.store(saved[0].used, Ordering::SeqCst);
        let patience = Duration::from_millis(1);
        let (restore, save) = (Box::new(restore), Box::new(Vec::new));
        let file = BudgetFile::over(away, written(PathBuf::new()), restore, save, patience);
        for _ in 0..1000 {
            file.changed();
        }
        while file.unsaved() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        assert_eq!(restored.load(Ordering::SeqCst), 0);
        AWAY.store(false, Ordering::SeqCst);
        file.settle();
        assert_eq!(file.unsaved(), Duration::ZERO);
        assert_eq!(restored.load(Ordering::SeqCst), 7);
    }

    #[test]
    fn a_link_beside_the_file_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        std::fs::write(&other, "keep").unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join("file.tmp")).unwrap();
        write(&path, Vec::new()).unwrap();
        assert_eq!(read(&path).unwrap(), []);
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "keep");
        // Nor is anything but a short regular file read.
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 32)
            .unwrap();
        assert!(read(&path).is_err());
        assert!(read(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn one_that_is_only_read_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let said = Saved {
            millis: 1,
            index: 1,
            used: 7,
            written_by: Predecessors::default(),
        };
        write(&path, vec![said.clone()]).unwrap();
        let restored = Arc::new(AtomicU32::new(0));
        let told = restored.clone();
        let restore = move |saved: &[Saved]| told.store(saved[0].used, Ordering::SeqCst);
        let place = BudgetPath {
            path: path.clone(),
            written: false,
        };
        let file = BudgetFile::open(place, Box::new(restore), Box::new(Vec::new));
        file.changed();
        file.settle();
        assert_eq!(restored.load(Ordering::SeqCst), 7);
        assert_eq!(read(&path).unwrap(), [said]);
        assert_eq!(file.unsaved(), Duration::ZERO);
    }

    #[test]
    fn what_cannot_be_written_stays_unsaved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("file");
        let file = BudgetFile::open(written(path), Box::new(|_| ()), Box::new(Vec::new));
        file.changed();
        file.settle();
        assert!(file.unsaved() > Duration::ZERO);
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        file.changed();
        file.settle();
        assert_eq!(file.unsaved(), Duration::ZERO);
    }
}
