//! All connection slots held by an ordinary role.
//!
//! A helper that is not tied to drctl's life holds them: it makes the role that it uses,
//! ends when its time is over, and removes the role. So there is no moment at which drctl
//! could end and leave a role without the one who removes it. The role has no rights but
//! to connect.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

use super::{Prepared, Request, Work};
use crate::error::{Error, Kind, Result};
use crate::faults::record::Heal;
use crate::faults::server::{asking, session};
use crate::postgres::{quote_ident, quote_literal};
use crate::system::{PostgresServer, System};
use crate::workload::WorkloadError;

/// Makes the role; its statement holds a password, so it comes by standard input and stays
/// out of the server's log. Then opens sessions until no more are given, and again when one
/// becomes free. All of them wait for the same input, which never comes. Arguments: seconds,
/// and the moment until which the role may log in.
const HOLD: &str = r#"
end=$(($(date +%s) + $1))
admin() { PGUSER=$ADMIN_USER PGPASSWORD=$ADMIN_PASSWORD psql -X -q -v ON_ERROR_STOP=1 -v db="$PGDATABASE" "$@"; }
admin <<SQL || exit 1
set log_statement = 'none'; set log_min_duration_statement = -1; set log_min_error_statement = 'panic';
create role "$PGUSER" login password '$PGPASSWORD' valid until '$2';
grant connect on database :"db" to "$PGUSER";
SQL
pipe=$(mktemp -u)
mkfifo "$pipe"
exec 9<>"$pipe"
held=''
more=8
while [ "$(date +%s)" -lt "$end" ]; do
  i=0
  while [ "$i" -lt "$more" ]; do
    psql -X -q <&9 >/dev/null 2>&1 &
    held="$held $!"
    i=$((i + 1))
  done
  sleep 0.5
  left=''
  more=8
  for pid in $held; do
    if kill -0 "$pid" 2>/dev/null; then left="$left $pid"; else more=1; wait "$pid" || :; fi
  done
  held=$left
done
for pid in $held; do kill "$pid" 2>/dev/null || :; done
wait
sleep 1
admin -c "drop owned by \"$PGUSER\"" -c "drop role if exists \"$PGUSER\""
"#;

pub(super) struct Sessions {
    role: String,
    database: String,
    ttl: Duration,
}

pub(super) async fn prepare(server: &PostgresServer, request: &Request, id: &str) -> Result<Prepared> {
    // Only to learn whether it is sound, and that the database exists.
    let database = request
        .database
        .clone()
        .unwrap_or_else(|| server.admin.database.clone());
    drop(session(server, &database).await?);
    // Short enough for an identifier (63 bytes), and its end tells the fault.
    let role = format!("drctl_fault_{}", id.replace(['-', '.'], "_"));
    let role: String = role.chars().take(60).collect();
    Ok(Prepared {
        target: format!("every ordinary connection slot of {}", server.service),
        heal: Heal::EndSessions { role: role.clone() },
        work: Work::Sessions(Sessions {
            role,
            database,
            ttl: request.ttl,
        }),
    })
}

impl Sessions {
    pub(super) async fn inject(&self, system: &System, server: &PostgresServer, id: &str) -> Result<String> {
        let client = session(server, &self.database).await?;
        // Hexadecimal digits: nothing in it needs quoting.
        let password = random_password()?;
        let until = Timestamp::now()
            .checked_add(self.ttl)
            .map_err(|e| Error::new(Kind::Usage, "the time to live is out of range").because(&e))?
            .to_string();
        let seconds = self.ttl.as_secs().to_string();
        let mut spec = server.client_helper(
            system.deployment(),
            id,
            "fault-sessions",
            &["sh", "-c", HOLD, "drctl", &seconds, &until],
        );
        spec.env
            .retain(|(name, _)| name != "PGUSER" && name != "PGDATABASE");
        spec.env.extend([
            ("PGUSER".into(), self.role.clone()),
            ("PGDATABASE".into(), self.database.clone()),
            ("PGAPPNAME".into(), "drctl-fault".into()),
            ("ADMIN_USER".into(), server.admin.user.clone()),
        ]);
        let admin = std::mem::take(&mut spec.secrets)
            .into_iter()
            .next()
            .map_or_else(|| SecretString::from(String::new()), |(_, p)| p);
        spec.secrets = vec![
            ("PGPASSWORD".into(), SecretString::from(password)),
            ("ADMIN_PASSWORD".into(), admin),
        ];
        // A little more than the script's own end: this one leaves the role behind.
        spec.detached = Some(self.ttl + Duration::from_secs(60));
        system.docker.launch_helper(&spec).await?;
        self.wait_full(server, &client).await
    }

    /// Until all slots but the administrators' are taken: the last one was refused.
    async fn wait_full(&self, server: &PostgresServer, client: &crate::postgres::Client) -> Result<String> {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut full = 0;
        loop {
            let rows = client
                .rows(&format!(
                    "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int \
                     - coalesce(current_setting('reserved_connections', true)::int, 0) - count(*), count(*) filter (where usename = {}) \
                     from pg_stat_activity where backend_type = 'client backend'",
                    quote_literal(&self.role)
                ))
                .await
                .map_err(asking(server, "the count of sessions"))?;
            let (free, held) = rows.first().map_or((1, 0), |r| {
                (r.number::<i64>(0).unwrap_or(1), r.number::<i64>(1).unwrap_or(0))
            });
            // A session of the application that ends leaves a gap until the helper looks
            // again: full is what stays full for longer than that.
            full = if free <= 0 && held > 0 { full + 1 } else { 0 };
            if full >= 8 {
                return Ok(format!("{held} sessions of {} hold what was free", self.role));
            }
            if tokio::time::Instant::now() >= end {
                return Err(Error::new(
                    Kind::VerifyFailed,
                    format!(
                        "{free} connection slots of {} are still free after 60 s; {held} are held",
                        server.service
                    ),
                )
                .next("drctl drill heal"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Ends the sessions and removes the role. `false` when neither was there any more.
///
/// # Errors
/// The engine's trouble; a role that cannot be dropped.
pub async fn end(system: &System, server: &PostgresServer, id: &str, role: &str) -> Result<bool> {
    let helpers = system.docker.list(&system.labels(id)).await?;
    for (container, _) in &helpers {
        match system.docker.remove(container).await {
            Ok(()) | Err(WorkloadError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let client = session(server, &server.admin.database).await?;
    let exists = client
        .value(&format!(
            "select 1 from pg_roles where rolname = {}",
            quote_literal(role)
        ))
        .await
        .map_err(asking(server, "the search for the fault's role"))?
        .is_some();
    if exists {
        let quoted = quote_ident(role);
        let told = client
            .execute(&format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = {}",
                quote_literal(role)
            ))
            .await;
        told.map_err(asking(server, "the end of the fault's sessions"))?;
        // A grant on a database is a dependency that only that database's owner list
        // knows; dropping what the role was granted comes first.
        client
            .execute(&format!("drop owned by {quoted}"))
            .await
            .map_err(asking(server, "the removal of the fault's grants"))?;
        client
            .execute(&format!("drop role if exists {quoted}"))
            .await
            .map_err(asking(server, "the removal of the fault's role"))?;
    }
    Ok(exists || !helpers.is_empty())
}

fn random_password() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Error::new(Kind::Internal, "/dev/urandom cannot be read").because(&e))?;
    Ok(bytes.iter().fold(String::new(), |mut text, b| {
        use std::fmt::Write;
        let _ = write!(text, "{b:02x}");
        text
    }))
}
