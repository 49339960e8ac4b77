//! An engine that listens on TCP behind TLS.
//!
//! Only the authority that the runbook names is trusted, as by `docker --tlsverify`: a public
//! one that vouches for the same name is not the operator's engine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::BollardRequest;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::runbook::DockerTls;

/// How long a connection that nobody uses is kept: a handshake per question would cost two
/// more journeys there and back.
const IDLE: Duration = Duration::from_secs(10);

/// A client of the engine at `address` (`host:port`).
///
/// # Errors
/// What is wrong with which file, in words.
pub(super) fn connect(address: &str, tls: &DockerTls, timeout_secs: u64) -> Result<bollard::Docker, String> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config(tls)?)
        .https_only()
        .enable_http1()
        .wrap_connector(http);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector);
    bollard::Docker::connect_with_custom_transport(
        move |request: BollardRequest| {
            let answer = client.request(request);
            async move { Ok(answer.await?) }
        },
        Some(format!("https://{address}")),
        timeout_secs,
        bollard::API_DEFAULT_VERSION,
    )
    .map_err(|e| super::docker::chain(&e))
}

fn config(tls: &DockerTls) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&tls.ca)? {
        roots
            .add(authority)
            .map_err(|e| format!("{} holds no usable certificate: {e}", tls.ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    match &tls.client {
        None => Ok(builder.with_no_client_auth()),
        Some(client) => {
            let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|e| unreadable(&client.key, &e))?;
            builder
                .with_client_auth_cert(certificates(&client.cert)?, key)
                .map_err(|e| {
                    format!(
                        "{} and {} do not go together: {e}",
                        client.cert.display(),
                        client.key.display()
                    )
                })
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unreadable(path, &e))?;
    if all.is_empty() {
        return Err(format!("there is no certificate in {}", path.display()));
    }
    Ok(all)
}

fn unreadable(path: &Path, e: &rustls::pki_types::pem::Error) -> String {
    match e {
        rustls::pki_types::pem::Error::Io(e) => format!("{} cannot be read: {e}", path.display()),
        other => format!("{} is not what it should be: {other}", path.display()),
    }
}
