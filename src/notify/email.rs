//! Mail, by SMTP.

use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use secrecy::ExposeSecret;

use crate::check::Message;
use crate::runbook::alerting::{Email, EmailTls};

/// Sends one mail to everybody.
pub(super) async fn send(config: &Email, message: &Message, deadline: Duration) -> Result<(), String> {
    let mut mail = lettre::Message::builder()
        .from(
            config
                .from
                .as_str()
                .parse()
                .map_err(|_| "the sender is no mail address")?,
        )
        .subject(&message.subject)
        // Answers and auto-replies to a machine help nobody.
        .raw_header(lettre::message::header::HeaderValue::new(
            lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".into(),
        ));
    for to in &config.to {
        mail = mail.to(to
            .as_str()
            .parse()
            .map_err(|_| "a recipient is no mail address")?);
    }
    let mail = mail
        .header(ContentType::TEXT_PLAIN)
        .body(format!("{}\n\n{}\n", message.subject, message.body))
        .map_err(|e| e.to_string())?;

    let tls = |host: &str| TlsParameters::new(host.to_owned()).map_err(|e| e.to_string());
    let (tls, port) = match config.tls {
        EmailTls::Starttls => (Tls::Required(tls(&config.host)?), 587),
        EmailTls::Tls => (Tls::Wrapper(tls(&config.host)?), 465),
        EmailTls::None => (Tls::None, 25),
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(config.host.as_str())
        .port(config.port.unwrap_or(port))
        .tls(tls)
        .hello_name(ClientId::Domain("localhost".to_owned()))
        .timeout(Some(deadline));
    if let (Some(user), Some(reference)) = (&config.user, &config.password) {
        let password = reference.resolve(&[]).await.map_err(|e| e.to_string())?;
        transport = transport.credentials(Credentials::new(
            user.clone(),
            password.expose_secret().to_owned(),
        ));
    }
    transport
        .build()
        .send(mail)
        .await
        .map(drop)
        .map_err(|e| in_words(&e))
}

/// The outer error says only what kind it is; the server's own words are behind it.
fn in_words(e: &lettre::transport::smtp::Error) -> String {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(s) = source {
        let more = s.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = s.source();
    }
    text
}
