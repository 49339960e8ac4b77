//! A deployment whose engine listens on TCP with TLS and asks for certificates: a proxy of the test's own in front
//! of the engine's socket. No port of the stack but nginx' is published, so everything goes through the engine.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

use crate::stack::{Output, Stack, run};

const ANSWER: Duration = Duration::from_secs(6);
/// What a helper may outlive its drctl.
const HOLDER: Duration = Duration::from_secs(40);

/// The proxy, and the files of those who may come in and of those who may not.
struct Engine {
    dir: TempDir,
    port: u16,
    runtime: tokio::runtime::Runtime,
}

/// An authority called `name`, its certificate, and one with key for each of `members`.
fn authority(dir: &TempDir, name: &str, members: &[&str]) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.path().join(format!("{name}.pem")), issuer.pem()).unwrap();
    for member in members {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        fs::write(dir.path().join(format!("{member}.pem")), cert.pem()).unwrap();
        fs::write(dir.path().join(format!("{member}.key")), key.serialize_pem()).unwrap();
    }
}

/// Takes TLS at a port of its own, and gives what is inside to whoever `open` reaches.
fn proxy<S, F>(
    runtime: &tokio::runtime::Runtime,
    config: ServerConfig,
    open: impl Fn() -> F + Clone + Send + 'static,
) -> u16
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    F: Future<Output = std::io::Result<S>> + Send,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, open) = (acceptor.clone(), open.clone());
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await.ok()?;
                let mut inside = open().await.ok()?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside)
                    .await
                    .ok()
            });
        }
    });
    port
}

/// The server's side, which asks for certificates where `clients` says so.
fn served_as(dir: &TempDir, clients: Option<Arc<dyn ClientCertVerifier>>) -> ServerConfig {
    let pem = |name: &str| dir.path().join(name);
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = match clients {
        Some(clients) => config.with_client_cert_verifier(clients),
        None => config.with_no_client_auth(),
    };
    config
        .with_single_cert(
            vec![CertificateDer::from_pem_file(pem("server.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(pem("server.key")).unwrap(),
        )
        .unwrap()
}

impl Engine {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        authority(&dir, "ca", &["server", "client"]);
        authority(&dir, "stranger-ca", &["stranger"]);
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap())
            .unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let port = proxy(&runtime, served_as(&dir, Some(clients)), || {
            tokio::net::UnixStream::connect("/var/run/docker.sock")
        });
        Self { dir, port, runtime }
    }

    /// A port at which the stack's nginx answers with TLS.
    fn website(&self, stack: &Stack) -> u16 {
        let nginx = stack.port;
        proxy(&self.runtime, served_as(&self.dir, None), move || {
            tokio::net::TcpStream::connect(("127.0.0.1", nginx))
        })
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The stack's runbook with this engine and these lines below `docker:`.
    fn runbook(&self, stack: &Stack, probe: &str, tls: &str) -> PathBuf {
        let text: String = fs::read_to_string(stack.runbook())
            .unwrap()
            .lines()
            .map(|line| match line.trim_start().split_once(": ") {
                Some(("compose-project", _)) => {
                    format!("{line}\n    host: tcp://127.0.0.1:{}\n{tls}", self.port)
                }
                Some(("probe", _)) => format!("  probe: {probe}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let path = self.dir.path().join("drctl.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    fn tls(&self, ca: &str, member: Option<&str>) -> String {
        let own = member.map_or_else(String::new, |m| {
            let (cert, key) = (self.file(&format!("{m}.pem")), self.file(&format!("{m}.key")));
            format!(", cert: {cert}, key: {key}")
        });
        format!("    tls: {{ ca: {}{own} }}\n", self.file(ca))
    }

    fn command(&self, stack: &Stack, probe: &str, tls: &str, args: &[&str]) -> Command {
        let mut command = stack.command(args);
        command.env("DRCTL_RUNBOOK", self.runbook(stack, probe, tls));
        command
    }

    fn drctl(&self, stack: &Stack, args: &[&str]) -> Output {
        let tls = self.tls("ca.pem", Some("client"));
        run(
            &mut self.command(stack, "10s", &tls, args),
            None,
            Duration::from_secs(240),
        )
    }

    fn agreed(&self, stack: &Stack, args: &[&str]) -> Output {
        let mut all = args.to_vec();
        all.extend(["--yes", "--confirm", &stack.name, "--json"]);
        self.drctl(stack, &all)
    }

    /// Exit code 7 in time, and these words.
    #[track_caller]
    fn no_way(&self, stack: &Stack, what: &str, tls: &str, words: &[&str]) {
        let began = Instant::now();
        let out = run(
            &mut self.command(stack, "3s", tls, &["diagnose"]),
            None,
            Duration::from_secs(60),
        );
        let said = format!(
            "{what}: {:?} after {:.1?}: {}",
            out.code,
            began.elapsed(),
            out.stderr
        );
        assert_eq!(out.code, Some(7), "{said}");
        assert!(began.elapsed() < ANSWER, "{said}");
        for word in words {
            assert!(out.stderr.contains(word), "{word:?} is missing: {said}");
        }
    }
}

#[test]
fn an_engine_behind_tls() {
    let Some(stack) = Stack::up("tls") else { return };
    let engine = Engine::start();

    engine.no_way(&stack, "no TLS", "", &["tcp://127.0.0.1"]);
    engine.no_way(
        &stack,
        "an authority that did not sign for the engine",
        &engine.tls("stranger-ca.pem", Some("client")),
        &["certificate"],
    );
    engine.no_way(
        &stack,
        "no certificate of its own",
        &engine.tls("ca.pem", None),
        &["tcp://127.0.0.1"],
    );
    engine.no_way(
        &stack,
        "somebody else's certificate",
        &engine.tls("ca.pem", Some("stranger")),
        &["tcp://127.0.0.1"],
    );
    engine.no_way(
        &stack,
        "a file that is not there",
        &engine.tls("ca.pem", Some("nobody")),
        &["nobody.key", "No such file"],
    );

    let out = engine.drctl(&stack, &["diagnose"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    endpoints_behind_tls(&stack, &engine);
    let out = engine.drctl(&stack, &["backup", "--json"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    engine.drctl(&stack, &["backup", "verify"]).ok();

    for (fault, remedy) in [
        ("heap-page", "restore-database"),
        ("pg-control", "restore-cluster"),
    ] {
        let fault = format!("db-corruption/{fault}");
        engine.drctl(&stack, &["drill", "inject", &fault]).ok();
        let began = Instant::now();
        let out = engine.agreed(&stack, &["recover", "db-corruption"]);
        assert_eq!(out.code, Some(0), "{fault}: {}{}", out.stdout, out.stderr);
        eprintln!("{fault}: {:.1?}", began.elapsed());
        assert_eq!(out.event("plan")["plan"]["remedy"], remedy, "{fault}");
        let report = out.event("report");
        assert_eq!(report["report"]["outcome"], "verified", "{fault}");
        let incident = report["report"]["incident"].as_str().unwrap();
        engine.agreed(&stack, &["incident", "close", incident]).ok();
        engine.drctl(&stack, &["drill", "heal", "--all", "--forget"]).ok();
        stack.wait_healthy();
    }

    engine
        .drctl(&stack, &["drill", "inject", "connection-exhaustion/idle"])
        .ok();
    let out = engine.agreed(&stack, &["recover", "connection-exhaustion"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    engine.drctl(&stack, &["drill", "heal", "--all"]).ok();
    assert_eq!(stack.leftovers_after(HOLDER), "");
}

/// Users come by https: the certificate must be one that the machine trusts.
fn endpoints_behind_tls(stack: &Stack, engine: &Engine) {
    let port = engine.website(stack);
    let text = fs::read_to_string(stack.runbook()).unwrap();
    let here = format!("http://127.0.0.1:{}", stack.port);
    assert!(text.contains(&here));
    let path = engine.dir.path().join("https.yaml");
    fs::write(&path, text.replace(&here, &format!("https://127.0.0.1:{port}"))).unwrap();
    let check = |authority: &str| {
        let mut command = stack.command(&["check", "--json"]);
        command
            .env("DRCTL_RUNBOOK", &path)
            .env("SSL_CERT_FILE", engine.file(authority));
        run(&mut command, None, Duration::from_secs(60)).stdout
    };
    let trusted = check("ca.pem");
    assert!(!trusted.contains("does not answer"), "{trusted}");
    assert!(!trusted.contains("certificate"), "{trusted}");
    let not = check("stranger-ca.pem");
    assert!(not.contains("invalid peer certificate"), "{not}");
}
