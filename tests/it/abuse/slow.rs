//! D12: a client that reads slowly, but steadily, during all other attacks.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::Target;
use super::raw::{ATTACKER, connect};

/// The size of the answer in MB, and how many of them are read per second.
const MEGABYTES: usize = 28;
const RATE: usize = 40_000;

/// The client and its server.
pub(super) struct SlowReader {
    target: Target,
    begun: Instant,
    reading: JoinHandle<()>,
}

impl SlowReader {
    pub(super) async fn start(target: Target) -> Self {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        let request = format!(
            "GET /prometheus/prom/api/v1/query?query=SIZE{MEGABYTES}&time=1600000000 HTTP/1.1\r\nhost: x\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; RATE / 10];
            loop {
                stream
                    .read_exact(&mut buffer)
                    .await
                    .expect("it is not cut off");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            target,
            begun: Instant::now(),
            reading,
        }
    }

    /// Checks that the answer is still being sent.
    pub(super) fn finish(self) {
        let (read_for, peak) = (self.begun.elapsed(), self.target.peak());
        println!(
            "D12: read slowly for {read_for:.1?}; peak {peak} MiB of {}",
            self.target.bound()
        );
        assert!(read_for < Duration::from_secs((MEGABYTES * 1_000_000 / RATE) as u64));
        assert!(!self.reading.is_finished(), "the client was cut off");
        assert!(peak <= self.target.bound());
        self.reading.abort();
    }
}
