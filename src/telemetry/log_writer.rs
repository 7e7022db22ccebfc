//! Writes log lines on a thread of its own. A request never waits for the log: if the reader of standard
//! error is slow, lines wait in a bounded queue, and beyond it they are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::metrics;

/// Most lines that wait to be written, and most bytes of one.
const QUEUE: usize = 4096;
const LONGEST: usize = 16 << 10;

/// A handle that queues lines.
#[derive(Clone, Debug)]
pub(super) struct LineWriter {
    queue: SyncSender<QueuedLine>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum QueuedLine {
    Line(Vec<u8>),
    /// Answered once all lines before it have been written.
    Flush(SyncSender<()>),
}

impl LineWriter {
    /// Returns a writer to `out`, and starts its thread.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&lines, out, &counted))?;
        Ok(Self { queue, dropped })
    }

    /// Waits until the lines so far have been written, for at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let (done, written) = sync_channel(1);
        // A full queue has nobody who reads it: there is nothing to wait for.
        if self.queue.try_send(QueuedLine::Flush(done)).is_ok() {
            let _ = written.recv_timeout(limit);
        }
    }
}

impl Write for LineWriter {
    /// Queues one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let kept = match line.get(..LONGEST) {
            None => line.to_vec(),
            Some(start) => [start, b"\xe2\x80\xa6\n"].concat(),
        };
        if let Err(TrySendError::Full(_)) = self.queue.try_send(QueuedLine::Line(kept)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            metrics::log_line_dropped();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what comes out of `lines`, and how many lines were dropped once there is room again.
fn write_all(lines: &Receiver<QueuedLine>, mut out: impl Write, dropped: &AtomicU64) {
    while let Ok(entry) = lines.recv() {
        // Errors are not reported: there is nowhere to report them to.
        match entry {
            QueuedLine::Line(line) => {
                let _ = out.write_all(&line);
            }
            QueuedLine::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(
                out,
                "heliostat: {lost} log lines were dropped: standard error was not read"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Whether an output takes anything, and what it has taken.
    type Taken = Mutex<(bool, Vec<u8>)>;

    /// An output that takes nothing until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Taken, Condvar)>);

    impl Gate {
        fn open(&self) {
            self.0.0.lock().unwrap().0 = true;
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.0.lock().unwrap();
            while !state.0 {
                state = self.0.1.wait(state).unwrap();
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let gate = Gate::default();
        let mut writer = LineWriter::start(gate.clone()).unwrap();
        for n in 0..QUEUE + 100 {
            writer.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        writer.write_all(&vec![b'x'; LONGEST + 9]).unwrap();
        gate.open();
        // The queue has room for the mark as soon as a line has been written.
        while !gate.text().contains("dropped") {
            std::thread::yield_now();
        }
        writer.flush(Duration::from_secs(60));
        let text = gate.text();
        assert!(text.starts_with("line 0\n"), "{text:.100}");
        assert!(text.contains("log lines were dropped"));
        assert!(text.lines().count() <= QUEUE + 3);
    }

    #[test]
    fn a_long_line_is_cut() {
        let gate = Gate::default();
        gate.open();
        let mut writer = LineWriter::start(gate.clone()).unwrap();
        writer.write_all(&vec![b'x'; 2 * LONGEST]).unwrap();
        writer.flush(Duration::from_secs(60));
        let text = gate.text();
        assert!(
            text.len() < LONGEST + 10 && text.ends_with("…\n"),
            "{}",
            text.len()
        );
    }
}
