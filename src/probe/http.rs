//! HTTP as a user sees it: one bounded request, no proxy, no redirect followed.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::runbook::WriteMethod;

/// Bytes of an answer that are read; the rest does not matter to any check.
const LONGEST_ANSWER: usize = 256 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Beginning of the body.
    pub body: String,
    /// How long it took.
    pub took: Duration,
}

/// No answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// None within the deadline.
    #[error("no answer within {}", crate::event::seconds(*.0))]
    Timeout(Duration),
    /// The connection failed or broke.
    #[error("{0}")]
    Failed(String),
}

/// Sends requests. Every one gets a connection of its own, as a new user's would: a kept one
/// hides that nobody listens any more.
#[derive(Debug, Clone)]
pub struct Http {
    plain: reqwest::Client,
}

/// For `https://`: it trusts what this machine trusts (its store of certificates, or what
/// `SSL_CERT_FILE` names). Made when it is first needed: reading the store takes longer than most
/// answers.
static TLS: OnceLock<Result<reqwest::Client, HttpError>> = OnceLock::new();

impl Http {
    /// A sender.
    ///
    /// # Errors
    /// [`HttpError::Failed`] when it cannot be set up.
    pub fn new() -> Result<Self, HttpError> {
        let plain = Self::trusting(rustls::RootCertStore::empty())?;
        Ok(Self { plain })
    }

    fn to(&self, url: &str) -> Result<&reqwest::Client, HttpError> {
        let https = url
            .get(..8)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        if !https {
            return Ok(&self.plain);
        }
        let client = TLS.get_or_init(|| {
            let mut roots = rustls::RootCertStore::empty();
            // One unreadable certificate of many is no reason not to use the others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Self::trusting(roots)
        });
        client.as_ref().map_err(Clone::clone)
    }

    fn trusting(roots: rustls::RootCertStore) -> Result<reqwest::Client, HttpError> {
        // The provider is named here: nobody has to have installed one before.
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| HttpError::Failed(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .user_agent(concat!("drctl/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| HttpError::Failed(chain(&e)))
    }

    /// `GET`.
    ///
    /// # Errors
    /// [`HttpError`]; any status is an answer.
    pub async fn get(&self, url: &str, timeout: Duration) -> Result<Answer, HttpError> {
        send(self.to(url)?.get(url), timeout).await
    }

    /// `POST` of a line of text.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn send_text(&self, url: &str, text: &str, timeout: Duration) -> Result<Answer, HttpError> {
        let request = self
            .to(url)?
            .post(url)
            .header("content-type", "text/plain; charset=utf-8")
            .body(text.to_owned());
        send(request, timeout).await
    }

    /// A write with a JSON body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn write(
        &self,
        method: WriteMethod,
        url: &str,
        body: &str,
        timeout: Duration,
    ) -> Result<Answer, HttpError> {
        let client = self.to(url)?;
        let request = match method {
            WriteMethod::Post => client.post(url),
            WriteMethod::Put => client.put(url),
            WriteMethod::Patch => client.patch(url),
        };
        let request = request
            .header("content-type", "application/json")
            .body(body.to_owned());
        send(request, timeout).await
    }
}

async fn send(request: reqwest::RequestBuilder, timeout: Duration) -> Result<Answer, HttpError> {
    let began = Instant::now();
    let work = async {
        let mut response = request.send().await?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST_ANSWER {
                break;
            }
        }
        Ok::<_, reqwest::Error>(Answer {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
            took: began.elapsed(),
        })
    };
    match tokio::time::timeout(timeout, work).await {
        Err(_) => Err(HttpError::Timeout(timeout)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(HttpError::Failed(chain(&e))),
    }
}

/// The innermost cause: the outer ones repeat the address.
fn chain(e: &dyn std::error::Error) -> String {
    let mut last = e;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
