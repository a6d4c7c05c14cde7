//! The Hub behind TLS: certificates are checked, and nothing leads from there to where anybody can listen.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::fake::log::{Logged, Origin};
use super::scene::{REPO, Scene};
use crate::support::process::Elo;

/// How long one direction of a conversation is listened to before the other one is.
const TURN: Duration = Duration::from_millis(2);

/// What stands before a Hub and speaks TLS with a certificate of its own.
struct Front {
    address: SocketAddr,
    certificate: String,
    stopping: Arc<AtomicBool>,
}

impl Front {
    fn of(scene: &Scene) -> Self {
        let names = vec!["127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let chain: Vec<CertificateDer<'static>> = vec![made.cert.der().clone()];
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from(key))
            .unwrap();
        // Who takes up the first is not understood: ranges are to come over connections of their own.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let behind = scene.hub.endpoint().trim_start_matches("http://").to_owned();
        let (config, stopping) = (Arc::new(config), Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&stopping);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (config, behind) = (Arc::clone(&config), behind.clone());
                thread::spawn(move || {
                    // A client that does not trust the certificate goes away in the middle.
                    let _ended = pass_on(stream, config, &behind);
                });
            }
        });
        Self { address, certificate: made.cert.pem(), stopping }
    }

    /// The same run, asking here instead.
    fn asked(&self, run: Elo) -> Elo {
        run.env("HF_ENDPOINT", format!("https://{}", self.address))
    }

    /// The same run, which also trusts the certificate.
    fn trusted(&self, run: Elo, scene: &Scene) -> Elo {
        let file = scene.work().join("certificate.pem");
        fs::write(&file, &self.certificate).unwrap();
        self.asked(run).env("SSL_CERT_FILE", file)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _woken = TcpStream::connect(self.address);
    }
}

/// Passes bytes on in both directions, in turns, until one side ends.
fn pass_on(outside: TcpStream, config: Arc<ServerConfig>, behind: &str) -> io::Result<()> {
    let mut inside = TcpStream::connect(behind)?;
    inside.set_read_timeout(Some(TURN))?;
    inside.set_nodelay(true)?;
    outside.set_read_timeout(Some(TURN))?;
    outside.set_nodelay(true)?;
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut outside = StreamOwned::new(session, outside);
    let mut buffer = vec![0; 64 << 10];
    loop {
        if !turn(&mut outside, &mut inside, &mut buffer)? {
            return Ok(());
        }
        if !turn(&mut inside, &mut outside, &mut buffer)? {
            outside.conn.send_close_notify();
            return outside.flush();
        }
    }
}

/// Passes on what there is; `false` at the end.
fn turn(from: &mut impl Read, to: &mut impl Write, buffer: &mut [u8]) -> io::Result<bool> {
    match from.read(buffer) {
        Ok(0) => Ok(false),
        Ok(n) => {
            to.write_all(&buffer[..n])?;
            to.flush()?;
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

#[test]
fn certificates_are_checked() {
    let scene = Scene::new();
    scene.hub.habits().elsewhere = false;
    let front = Front::of(&scene);
    let run = scene.elo(&format!("pull {REPO}"));
    let refused = front.asked(run.clone()).run();
    scene.check(&refused, "a certificate that nobody knows");
    refused.expect(6, &["certificate"]);
    assert!(scene.hub.requests().is_empty(), "something was asked over it");
    let outcome = front.trusted(run, &scene).ok();
    scene.check(&outcome, "a certificate that is trusted");
    let commit = scene.head();
    scene.assert_pulled(&scene.snapshot(&commit), &commit, "by TLS");
}

#[test]
fn nothing_leads_from_tls_to_plain_text() {
    let scene = Scene::new();
    // Large files come from the other origin, which speaks no TLS.
    assert!(scene.hub.habits().elsewhere);
    let front = Front::of(&scene);
    let outcome = front.trusted(scene.elo(&format!("pull {REPO}")), &scene).run();
    scene.check(&outcome, "a redirect to plain text");
    outcome.expect(7, &["a redirect leads to `http:`"]);
    let left = |entry: &Logged| entry.origin == Origin::Other;
    assert!(!scene.hub.requests().iter().any(left), "the other origin was asked");
    let blobs = scene.folder().join("blobs");
    let large = |path: &Path| path.file_name().is_some_and(|name| name.len() == 64);
    let kept = fs::read_dir(blobs).into_iter().flatten().flatten().map(|entry| entry.path());
    assert_eq!(kept.filter(|path| large(path)).count(), 0, "a large file got its name");
}
