//! The checks that a schema cannot express: names used as keys, references, cycles, and facts that belong together.
//!
//! They work on the tree, not on the typed runbook, so that they also run when another part of the file is wrong.

mod alerting;
mod redis;
mod sql;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::node::{Entry, Node, Value};
use super::problem::{Collector, DocumentPath, ProblemKind};
use super::suggest;
use super::text::{BadText, DatabaseName, ServiceName, SystemName, TableName, shorten};

/// Runs every check.
pub(super) fn check(root: &Node, found: &mut Collector<'_>) {
    if let Some(services) = root.get("services") {
        let path = DocumentPath::new(&["services"]);
        names::<ServiceName>(services, &path, found);
        for entry in services.entries() {
            service(entry, &path.join(&entry.key), found);
        }
        containers(services, &path, found);
        references(services, &path, found);
        cycles(services, &path, found);
    }
    if let Some(endpoints) = root.get("endpoints") {
        let path = DocumentPath::new(&["endpoints"]);
        for entry in endpoints.entries() {
            if entry.key.trim().is_empty() {
                found.add(
                    ProblemKind::BadValue,
                    entry.key_at,
                    &path,
                    "the name is empty",
                    Some("for example `health`".to_owned()),
                );
            }
            placeholders(&entry.node, &path.join(&entry.key), false, found);
        }
    }
    if let Some(docker) = root.get("platform").and_then(|p| p.get("docker")) {
        tls(docker, &DocumentPath::new(&["platform", "docker"]), found);
        project(root, docker, found);
    }
    if let Some(check) = root.get("write-check") {
        write_check(check, &DocumentPath::new(&["write-check"]), found);
    }
    alerting::check(root, found);
    if let Some(keep) = root.get("backup").and_then(|b| b.get("keep")) {
        keeps_something(keep, found);
    }
    if let Some(postgres) = root.get("backup").and_then(|b| b.get("postgres")) {
        saves_something(postgres, found);
    }
}

/// A set of facts alone restores nothing, and would pass for the newest backup.
fn saves_something(postgres: &Node, found: &mut Collector<'_>) {
    let is_off = |key: &str| {
        postgres
            .get(key)
            .is_some_and(|v| v.to_json().as_bool() == Some(false))
    };
    if is_off("logical") && is_off("physical") {
        found.add(
            ProblemKind::BadValue,
            postgres.at,
            &DocumentPath::new(&["backup", "postgres"]),
            "nothing is backed up: at least one of `logical` and `physical` must be on",
            Some("remove one of the two; both are on by default".to_owned()),
        );
    }
}

/// A retention that wants nothing is a slip of the pen: it would remove all but the newest set.
fn keeps_something(keep: &Node, found: &mut Collector<'_>) {
    // Anything but a mapping is reported by the schema.
    let keeps_none = matches!(&keep.value, Value::Map(rules) if rules
        .iter()
        .all(|rule| rule.node.to_json().as_u64() == Some(0)));
    if !keeps_none {
        return;
    }
    found.add(
        ProblemKind::BadValue,
        keep.at,
        &DocumentPath::new(&["backup", "keep"]),
        "no rule keeps anything: every set but the newest would be removed",
        Some(
            "for example `keep: { last: 3, daily: 7, weekly: 4 }`; without `keep` nothing is removed"
                .to_owned(),
        ),
    );
}

/// TLS belongs to a TCP address, and a certificate to its key.
fn tls(docker: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let Some(tls) = docker.entry("tls") else { return };
    let path = path.join("tls");
    let host = docker.get("host").and_then(Node::text);
    if let Some(host) = host.filter(|h| !h.starts_with("tcp://")) {
        found.add(
            ProblemKind::BadValue,
            tls.key_at,
            &path,
            format!(
                "`tls` belongs to a tcp:// address, and `host` is {}",
                super::text::shorten(host)
            ),
            Some("remove it, or write `host: tcp://10.0.0.5:2376`".to_owned()),
        );
    }
    for (given, missing) in [("cert", "key"), ("key", "cert")] {
        if let (Some(entry), None) = (tls.node.entry(given), tls.node.entry(missing)) {
            found.add(
                ProblemKind::MissingField,
                entry.key_at,
                &path.join(given),
                format!("`{given}` is of no use without `{missing}`"),
                Some(format!("add `{missing}: /etc/drctl/docker/{missing}.pem`")),
            );
        }
    }
}

/// A deployment's name is the project's where none is given, and Compose takes fewer characters.
fn project(root: &Node, docker: &Node, found: &mut Collector<'_>) {
    let Some((node, name)) = root.get("deployment").and_then(|node| Some((node, node.text()?))) else {
        return;
    };
    // A bad name is reported as such.
    if docker.get("compose-project").is_none() && name.contains('.') && name.parse::<SystemName>().is_ok() {
        found.add(
            ProblemKind::BadValue,
            node.at,
            &DocumentPath::new(&["deployment"]),
            "Compose forbids dots in a project's name, and without `compose-project` this would be it",
            Some(format!(
                "add `platform: {{ docker: {{ compose-project: {} }} }}`, with the name that `docker compose ls` shows",
                shorten(&name.replace('.', ""))
            )),
        );
    }
}

/// A container is one service: restarted for one, or copied from as a database, it must not be another one as well.
fn containers(services: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let mut seen: BTreeMap<&str, &Entry> = BTreeMap::new();
    for entry in services.entries() {
        let Some((node, name)) = entry
            .node
            .get("container")
            .and_then(|node| Some((node, node.text()?)))
        else {
            continue;
        };
        if let Some(first) = seen.insert(name, entry)
            && first.key != entry.key
        {
            let message = format!(
                "`{}` is the container of `{}` as well",
                shorten(name),
                shorten(&first.key)
            );
            found.add(
                ProblemKind::BadValue,
                node.at,
                &path.join(&entry.key).join("container"),
                message,
                Some("give each service the container that it runs in".to_owned()),
            );
        }
    }
}

/// Checks the keys of a mapping that are names of something.
fn names<T: FromStr<Err = BadText>>(node: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    for entry in node.entries() {
        if let Err(bad) = T::from_str(&entry.key) {
            found.add(
                ProblemKind::BadValue,
                entry.key_at,
                &path.join(&entry.key),
                bad.message,
                bad.suggestion,
            );
        }
    }
}

/// A service has the facts of its kind, and no others.
fn service(service: &Entry, path: &DocumentPath, found: &mut Collector<'_>) {
    let kind = service
        .node
        .get("kind")
        .and_then(Node::text)
        .filter(|kind| ["postgres", "redis", "nginx", "app"].contains(kind));
    for (facts, of) in [("postgres", "postgres"), ("redis", "redis"), ("scale-out", "app")] {
        if let (Some(kind), Some(entry)) = (kind, service.node.entry(facts))
            && kind != of
        {
            let message = format!("`{facts}` does not belong to a service of kind `{kind}`");
            let suggestion = format!("remove it, or write `kind: {of}`");
            found.add(
                ProblemKind::BadValue,
                entry.key_at,
                &path.join(facts),
                message,
                Some(suggestion),
            );
        }
    }
    if kind == Some("postgres") && service.node.get("postgres").is_none() {
        let suggestion = "add `postgres: { admin-user: …, databases: { … } }`".to_owned();
        found.add(
            ProblemKind::MissingField,
            service.node.at,
            path,
            "`postgres` is missing: a service of this kind needs it",
            Some(suggestion),
        );
    }
    if let Some(redis) = service.node.get("redis") {
        redis::check(redis, &path.join("redis"), found);
    }
    if let Some(databases) = service
        .node
        .get("postgres")
        .and_then(|postgres| postgres.get("databases"))
    {
        let path = path.join("postgres").join("databases");
        names::<DatabaseName>(databases, &path, found);
        for entry in databases.entries() {
            database(&entry.node, &path.join(&entry.key), found);
        }
    }
}

fn database(database: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    if let Some(tables) = database.get("tables") {
        let path = path.join("tables");
        names::<TableName>(tables, &path, found);
        let mut seen: BTreeMap<TableName, &Entry> = BTreeMap::new();
        for entry in tables.entries() {
            // The same text twice is a duplicate key, which is reported elsewhere.
            if let Ok(name) = entry.key.parse()
                && let Some(first) = seen.insert(name, entry)
                && first.key != entry.key
            {
                let message = format!("the same table as `{}` on line {}", first.key, first.key_at.line);
                found.add(
                    ProblemKind::DuplicateKey,
                    entry.key_at,
                    &path.join(&entry.key),
                    message,
                    Some("keep one of the two".to_owned()),
                );
            }
        }
    }
    for (index, validation) in database
        .get("validation")
        .map(Node::items)
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        let Some((node, sql)) = validation.get("sql").and_then(|node| Some((node, node.text()?))) else {
            continue;
        };
        // An empty one is reported by the schema.
        if !sql.is_empty() {
            let path = path.join("validation").join(&index.to_string()).join("sql");
            sql::check(node, sql, &path, found);
        }
    }
}

/// Every `depends-on` names another service.
fn references(services: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let known: BTreeSet<&str> = services
        .entries()
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    for service in services.entries() {
        if found.is_full() {
            return;
        }
        let path = path.join(&service.key).join("depends-on");
        let mut seen = BTreeSet::new();
        for (index, item) in dependencies(service).iter().enumerate() {
            let Some(name) = item.text() else { continue };
            let path = path.join(&index.to_string());
            if name == service.key {
                let message = format!("`{}` depends on itself", shorten(name));
                found.add(
                    ProblemKind::DependencyCycle,
                    item.at,
                    &path,
                    message,
                    Some("remove it".to_owned()),
                );
            } else if !known.contains(name) {
                let others = services
                    .entries()
                    .iter()
                    .map(|entry| entry.key.as_str())
                    .filter(|&key| key != service.key);
                let message = format!("there is no service `{}`", shorten(name));
                found.add(
                    ProblemKind::UnknownReference,
                    item.at,
                    &path,
                    message,
                    suggest::did_you_mean(name, others),
                );
            } else if seen.contains(name) {
                let message = format!("`{}` is listed twice", shorten(name));
                found.add(
                    ProblemKind::BadValue,
                    item.at,
                    &path,
                    message,
                    Some("remove one of the two".to_owned()),
                );
            }
            seen.insert(name);
        }
    }
}

fn dependencies(service: &Entry) -> &[Node] {
    service
        .node
        .get("depends-on")
        .map(Node::items)
        .unwrap_or_default()
}

/// How far the search for cycles has come with a service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    Open,
    Closed,
}

/// No service needs itself through others: such a deployment could neither be started nor stopped in order.
fn cycles(services: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let graph: BTreeMap<&str, &Entry> = services
        .entries()
        .iter()
        .map(|entry| (entry.key.as_str(), entry))
        .collect();
    let mut visits: BTreeMap<&str, Visit> = BTreeMap::new();
    for &start in graph.keys() {
        if visits.contains_key(start) {
            continue;
        }
        // Depth first with a stack of its own: a chain may be as long as the file.
        let mut trail: Vec<(&str, usize)> = vec![(start, 0)];
        visits.insert(start, Visit::Open);
        while let Some(&mut (name, ref mut next)) = trail.last_mut() {
            let index = *next;
            *next += 1;
            let Some(item) = graph
                .get(name)
                .and_then(|service| dependencies(service).get(index))
            else {
                visits.insert(name, Visit::Closed);
                trail.pop();
                continue;
            };
            let Some((&needed, _)) = item.text().and_then(|text| graph.get_key_value(text)) else {
                continue;
            };
            match visits.get(needed) {
                None => {
                    visits.insert(needed, Visit::Open);
                    trail.push((needed, 0));
                }
                // Depending on itself is reported with the references.
                Some(Visit::Open) if needed != name => {
                    let circle: Vec<&str> = trail
                        .iter()
                        .map(|&(name, _)| name)
                        .skip_while(|&name| name != needed)
                        .chain([needed])
                        .collect();
                    let shown: Vec<String> = circle.iter().take(10).map(|name| shorten(name)).collect();
                    let more = if circle.len() > 10 { " → …" } else { "" };
                    let path = path.join(name).join("depends-on").join(&index.to_string());
                    let message = format!(
                        "services depend on each other in a circle: {}{more}",
                        shown.join(" → ")
                    );
                    found.add(
                        ProblemKind::DependencyCycle,
                        item.at,
                        &path,
                        message,
                        Some("remove one of these dependencies".to_owned()),
                    );
                }
                Some(_) => {}
            }
        }
    }
}

/// The read can use what the write answers, and the write sends JSON.
fn write_check(check: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    if let Some(write) = check.get("write") {
        placeholders(write, &path.join("write"), false, found);
        if let Some((node, body)) = write.get("body").and_then(|node| Some((node, node.text()?)))
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(body)
        {
            let message = format!("the body is not JSON: {error}");
            let suggestion = r#"for example `'{"note": "drctl check"}'`"#.to_owned();
            found.add(
                ProblemKind::BadValue,
                node.at,
                &path.join("write").join("body"),
                message,
                Some(suggestion),
            );
        }
    }
    if let Some(read) = check.get("read") {
        placeholders(read, &path.join("read"), true, found);
    }
    if let Some(id_field) = check.entry("id-field")
        && let Some(url) = check
            .get("read")
            .and_then(|read| read.get("url"))
            .and_then(Node::text)
        && !url.contains("{id}")
    {
        let message = "`id-field` is not used: the read's URL has no `{id}`";
        let suggestion = "write `{id}` into `read.url` where the identifier belongs".to_owned();
        found.add(
            ProblemKind::UnknownReference,
            id_field.key_at,
            &path.join("id-field"),
            message,
            Some(suggestion),
        );
    }
}

/// A URL holds only placeholders for which there is a value: `{id}`, and only where a write came before.
fn placeholders(request: &Node, path: &DocumentPath, has_id: bool, found: &mut Collector<'_>) {
    let Some((node, url)) = request.get("url").and_then(|node| Some((node, node.text()?))) else {
        return;
    };
    let mut rest = url;
    while let Some((_, tail)) = rest.split_once('{') {
        let (name, after) = tail.split_once('}').unwrap_or((tail, ""));
        if !(has_id && name == "id") {
            let message = format!("nothing gives `{{{}}}` a value", shorten(name));
            let suggestion = if has_id {
                "`{id}` stands for the identifier in the write's answer"
            } else {
                "write the address without placeholders"
            };
            found.add(
                ProblemKind::UnknownReference,
                node.at,
                &path.join("url"),
                message,
                Some(suggestion.to_owned()),
            );
        }
        rest = after;
    }
}
