//! Reads files of the configuration: regular ones only, and bounded. A pipe could block its reader for
//! ever, and a device never end.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// The largest file that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// Returns the contents of the file at `path`.
///
/// # Errors
///
/// Fails if it cannot be read, is not a regular file, or is larger than 16 MiB.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    read_any(path)
}

/// Returns the contents of the file at `path`, which may be a pipe: it waits until that ends.
///
/// # Errors
///
/// Fails if it cannot be read, or is larger than 16 MiB.
pub fn read_any(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    Ok(bytes)
}

/// Returns the result of `work`, which runs on a thread of its own, or an error if it takes longer than
/// `limit`: a folder of a network that is away holds up whoever reads or writes it.
///
/// # Errors
///
/// Fails if it takes longer, or panics. It goes on all the same.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, mpsc::RecvTimeoutError> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody may wait for it any more.
        let _ = tell.send(work());
    });
    told.recv_timeout(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_folder_that_does_not_answer() {
        assert_eq!(within(Duration::from_secs(60), || 7), Ok(7));
        let (open, gate) = mpsc::channel::<()>();
        let hangs = move || gate.recv().is_ok();
        assert!(within(Duration::from_millis(1), hangs).is_err());
        drop(open);
    }

    #[test]
    fn only_regular_files_of_some_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, "text").unwrap();
        assert_eq!(read(&path).unwrap(), b"text");
        File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("16 MiB"));
        let wrong = [folder.path(), Path::new("/dev/zero")];
        for path in wrong {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        assert!(read_any(Path::new("/dev/zero")).is_err(), "it ends");
    }
}
