//! A Redis of its own, and a way to it on which faults happen.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A Redis of its own; it ends when dropped.
pub(crate) struct Redis {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    /// Starts one with its files in `dir`; `None` if there is no `redis-server`.
    pub(crate) fn start(dir: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, port })
    }

    /// Sends a signal to it.
    pub(crate) fn signal(&self, name: &str) {
        super::signal(self.child.id(), name);
    }

    /// Sends it a command.
    pub(crate) fn command(&self, arguments: &[&str]) {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]).args(arguments);
        assert!(cli.stdout(Stdio::null()).status().unwrap().success());
    }
}

/// The section of a configuration that names the Redis at `port`.
pub(crate) fn shared(port: u16, timeout: &str) -> String {
    format!(
        "\n[cache.shared]\nurls = [\"redis://127.0.0.1:{port}\"]\n\
         secret = \"a secret of the bench\"\ntimeout = {timeout:?}\n"
    )
}

/// A fault in the replies that pass a [`Proxy`].
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Fault {
    None,
    /// They come 200 ms later.
    Late,
    /// One byte in seven is another.
    Corrupted,
}

/// A way to a Redis on which faults happen. Its thread ends with the process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    fault: Arc<AtomicU8>,
}

impl Proxy {
    pub(crate) fn to(redis: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0");
        let listener = runtime.block_on(listener).unwrap();
        let port = listener.local_addr().unwrap().port();
        let fault = Arc::new(AtomicU8::new(Fault::None as u8));
        let current = fault.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let server = tokio::net::TcpStream::connect(("127.0.0.1", redis));
                    let Ok(server) = server.await else { continue };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::spawn(pass(from_client, to_server, Arc::default()));
                    tokio::spawn(pass(from_server, to_client, current.clone()));
                }
            });
        });
        Self { port, fault }
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    fault: Arc<AtomicU8>,
) {
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let some = &mut piece[..length];
        let fault = fault.load(Ordering::SeqCst);
        if fault == Fault::Late as u8 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        } else if fault == Fault::Corrupted as u8 {
            some.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x15);
        }
        if to.write_all(some).await.is_err() {
            return;
        }
    }
}
