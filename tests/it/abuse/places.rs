//! The places of probes and refusals, which are few.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::raw::{ATTACKER, connect, http2_get, http2_without_window};
use crate::support::Server;

/// The places for probes and refusals (docs/protection.md).
const PLACES: usize = 1024;

/// Requests `path` on 256 streams of HTTP/2 without a window, and reads the heads of their answers. Returns
/// the connection and how many answers ended with their heads.
async fn unread(server: &Server, path: &str) -> (TcpStream, usize) {
    let address = server.url.trim_start_matches("http://").parse().unwrap();
    let mut stream = connect(address, ATTACKER).await.unwrap();
    let mut bytes = http2_without_window();
    for n in 0..256 {
        bytes.extend(http2_get(2 * n + 1, path));
    }
    stream.write_all(&bytes).await.unwrap();
    let (mut heads, mut ended) = (0, 0);
    while heads < 256 {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        // HEADERS, and its flag END_STREAM.
        heads += usize::from(head[3] == 1);
        ended += usize::from(head[3] == 1 && head[4] & 1 == 1);
    }
    (stream, ended)
}

#[tokio::test]
async fn few_answers_of_probes_and_refusals_wait_for_a_window() {
    // The one place among the requests in flight is taken by an answer that nobody reads.
    for (path, places) in [("/healthz", PLACES), ("/openapi.json", 1 + PLACES)] {
        let server = Server::start(
            "[server]\nmax_in_flight = 1\n[[upstream]]\nname = \"places\"\nkind = \"demo\"",
        )
        .await;
        let (mut held, mut heads_alone) = (Vec::new(), 0);
        for _ in 0..5 {
            let (stream, ended) = unread(&server, path).await;
            held.push(stream);
            heads_alone += ended;
        }
        assert_eq!(heads_alone, 5 * 256 - places, "{path}");
        // From another address each is answered: one of the largest holder gives way.
        assert_eq!(server.get("/healthz").await.text, "ok\n");
        let metrics = server.get("/metrics").await;
        assert_eq!(metrics.status, 200);
        assert!(metrics.text.contains("heliostat_gave_way_total"));
        drop(held);
    }
}

#[tokio::test]
async fn probes_are_answered_in_brief_to_a_client_that_holds_all_their_places() {
    let server = Server::start("[[upstream]]\nname = \"places\"\nkind = \"demo\"").await;
    let client = heliostat::upstream::Http::builder();
    let client = client.local_address(std::net::IpAddr::from(ATTACKER));
    let client = client.build().unwrap();
    let get = |path: &str| server.reply(client.get(format!("{}{path}", server.url)));
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(unread(&server, "/readyz").await);
    }
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 503)] {
        let reply = get(path).await;
        assert_eq!((reply.status, &reply.text[..]), (status, ""), "{path}");
    }
    drop(held);
    let mut again = get("/metrics").await;
    for _ in 0..600 {
        if again.status == 200 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
        again = get("/metrics").await;
    }
    assert!(again.text.contains("heliostat_in_flight_requests"));
}

#[tokio::test]
async fn a_probe_whose_answer_nobody_reads_ends_with_its_connection() {
    let server = Server::start("[[upstream]]\nname = \"places\"\nkind = \"demo\"").await;
    let (mut stream, _) = unread(&server, "/metrics").await;
    // From here on time passes as fast as everything waits for it.
    tokio::time::pause();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let end = timeout(Duration::from_secs(300), stream.read_to_end(&mut rest)).await;
    assert!(end.is_ok());
    // Sooner than where a PING is not answered.
    let took = begun.elapsed();
    assert!(
        (15..40).contains(&took.as_secs()),
        "closed after {took:.1?}"
    );
}
