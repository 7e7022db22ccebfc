//! Raw bytes over sockets, from chosen addresses.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The addresses of the attacker and of the well-behaved client.
pub(super) const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);
pub(super) const MODEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 7);

/// Connects to `address` from `client`.
pub(super) async fn connect(address: SocketAddr, client: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((client, 0).into())?;
    socket.connect(address).await
}

/// Sends `request` from `client` and reads until the end.
pub(super) async fn exchange(
    address: SocketAddr,
    client: Ipv4Addr,
    request: &[u8],
) -> io::Result<String> {
    let whole = async {
        let mut stream = connect(address, client).await?;
        // The answer may arrive, and the connection close, before everything has been sent.
        let sent = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        if answer.is_empty() {
            sent?;
            read?;
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(Duration::from_secs(60), whole)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Sends `request` from `client`, and returns the start of the answer and the length of its body,
/// which is discarded.
pub(super) async fn download(
    address: SocketAddr,
    client: Ipv4Addr,
    request: &[u8],
) -> io::Result<(String, usize)> {
    let whole = async {
        let mut stream = connect(address, client).await?;
        stream.write_all(request).await?;
        let mut start = Vec::new();
        let end = loop {
            if let Some(at) = start.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut start).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let mut length = start.len() - end;
        start.truncate(1000);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match stream.read(&mut buffer).await? {
                0 => break,
                read => length += read,
            }
        }
        Ok((String::from_utf8_lossy(&start).into_owned(), length))
    };
    timeout(Duration::from_secs(60), whole)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Returns a POST of `body` to `path`.
pub(super) fn post(path: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Returns the beginning of an HTTP/2 connection whose streams have no window.
pub(super) fn http2_without_window() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS with INITIAL_WINDOW_SIZE (4) of 0.
    bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    bytes
}

/// Returns a GET of `path` on `stream`: a HEADERS frame that ends headers and stream.
pub(super) fn http2_get(stream: u32, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    assert!(length < 127);
    // :method GET, :scheme http, :path and :authority as literals without indexing.
    let mut block = vec![0x82, 0x86, 0x04, length];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'x']);
    let size = u8::try_from(block.len()).unwrap();
    let mut frame = vec![0, 0, size, 1, 0x5];
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}
