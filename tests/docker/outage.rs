//! Everything down at once, less than that, and an engine that does not answer.

use crate::stack::Stack;

const SERVICES: &[&str] = &["postgres", "redis", "api1", "api2", "cv_service", "nginx"];

fn states(stack: &Stack) -> Vec<String> {
    SERVICES
        .iter()
        .map(|s| stack.inspect(s, "{{.Id}} {{.State.Status}} {{.State.StartedAt}}"))
        .collect()
}

fn opinions(stack: &Stack) -> Vec<serde_json::Value> {
    let mut all = stack.drctl(&["diagnose", "--json"]).events();
    all.retain(|e| e["event"] == "opinion");
    all
}

#[test]
fn everything_is_started_again_in_order_and_can_be_stopped_again() {
    let Some(stack) = Stack::up("outage") else { return };
    for fault in ["outage/all-stopped", "outage/all-killed"] {
        stack.agreed(&["drill", "inject", fault, "--ttl", "10m"]).ok();
        let first = &opinions(&stack)[0];
        assert_eq!(
            (&first["scenario"], &first["certainty"]),
            (&"outage".into(), &"confirmed".into()),
            "{first}"
        );
        let out = stack.agreed(&["recover", "outage"]);
        assert_eq!(out.event("plan")["plan"]["remedy"], "start-all");
        out.ok();
        stack.wait_healthy();
        // Each began after all that it needs.
        let started: Vec<jiff::Timestamp> = ["postgres", "api1", "nginx"]
            .iter()
            .map(|s| stack.inspect(s, "{{.State.StartedAt}}").parse().unwrap())
            .collect();
        assert!(started.is_sorted(), "{started:?}");
        stack.agreed(&["drill", "heal"]).ok();
    }
    stack.agreed(&["incident", "undo"]).ok();
    assert!(
        states(&stack).iter().all(|s| s.contains(" exited ")),
        "{:?}",
        states(&stack)
    );
    stack.agreed(&["recover", "outage"]).ok();
    stack.wait_healthy();
}

/// One that does not come up takes nobody down again.
#[test]
fn what_came_up_stays_up_when_one_service_does_not() {
    let Some(stack) = Stack::up("outageone") else {
        return;
    };
    for service in SERVICES {
        crate::stack::docker(&["stop", "-t", "20", &stack.container(service)]).ok();
    }
    let bad = stack.container("api2");
    let over = std::sync::atomic::AtomicBool::new(false);
    let out = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                crate::stack::docker(&["kill", &bad]);
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
        });
        let out = stack.agreed(&["recover", "outage"]);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        out
    });
    // nginx does not start while the name of an upstream is not known, and that is the step that fails.
    assert_eq!(out.code, Some(9), "{}{}", out.stdout, out.stderr);
    for words in ["api2 does not stay up", "drctl diagnose", "drctl incident undo"] {
        assert!(
            out.stdout.contains(words),
            "{words:?} is not in {}{}",
            out.stdout,
            out.stderr
        );
    }
    let up = |stack: &Stack| states(stack).iter().filter(|s| s.contains(" running ")).count();
    assert_eq!(up(&stack), SERVICES.len() - 2, "{:?}", states(&stack));
    // The operator may still say so.
    stack.agreed(&["incident", "undo"]).ok();
    assert_eq!(up(&stack), 0, "{:?}", states(&stack));
    stack.agreed(&["recover", "outage"]).ok();
    stack.wait_healthy();
}

#[test]
fn one_service_is_no_outage() {
    let Some(stack) = Stack::up("nooutage") else {
        return;
    };
    for fault in ["outage/frontend-stopped", "outage/one-service"] {
        stack.agreed(&["drill", "inject", fault, "--ttl", "10m"]).ok();
        let all = opinions(&stack);
        assert_eq!(all[0]["scenario"], "service-crash", "{fault}: {}", all[0]);
        let outage = all.iter().find(|o| o["scenario"] == "outage").unwrap();
        assert_eq!(outage["certainty"], "absent", "{outage}");
        let before = states(&stack);
        let out = stack.agreed(&["recover", "outage"]);
        assert!(out.event("plan").is_null(), "{}", out.stdout);
        out.ok();
        assert_eq!(states(&stack), before);
        stack.agreed(&["drill", "heal"]).ok();
        stack.wait_healthy();
    }
}

#[test]
fn without_an_engine_it_tells_what_is_still_known() {
    let Some(stack) = Stack::up("noengine") else {
        return;
    };
    for verb in [
        &["diagnose", "--json"][..],
        &["recover", "outage", "--json", "--yes"],
    ] {
        let mut command = stack.command(verb);
        command.env(
            "DOCKER_HOST",
            format!("unix://{}/none.sock", stack.dir.path().display()),
        );
        let out = crate::stack::run(&mut command, None, std::time::Duration::from_secs(30));
        assert_eq!(out.code, Some(7), "{}{}", out.stdout, out.stderr);
        let opinion = out.event("opinion");
        // The application runs on, and users are what counts.
        assert_eq!(opinion["certainty"], "unknown", "{opinion}");
        assert!(
            opinion["summary"].as_str().unwrap().contains("still served"),
            "{opinion}"
        );
        assert_eq!(
            opinion["evidence"]["endpoints"]["ready"]["failures"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
        assert!(
            out.event("error")["next"]
                .as_array()
                .is_some_and(|n| !n.is_empty())
        );
    }
}

/// What `diagnose` finds beside the scenarios: exit code, name, and all of it as text.
fn general(stack: &Stack) -> (Option<i32>, String, String) {
    let out = stack.drctl(&["diagnose", "--json"]);
    let finding = out.event("finding");
    let name = finding["name"].as_str().unwrap_or_default().to_owned();
    (out.code, name, format!("{finding}\n{}", out.stdout))
}

/// The server runs, its administrator gets in, and no user does: none of it is called well.
#[test]
fn an_application_that_is_kept_out_is_never_called_well() {
    let Some(stack) = Stack::up("keptout") else {
        return;
    };
    let ends = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'simgen_app'";
    for (what, harm, mend, code, name, says) in [
        (
            "no login",
            "alter role simgen_app nologin",
            "alter role simgen_app login",
            10,
            "application-role",
            "login;",
        ),
        (
            "read only",
            "alter database simgen set default_transaction_read_only = on",
            // As `diagnose` says: the administrator's session is read-only, too.
            "set default_transaction_read_only = off; alter database simgen reset default_transaction_read_only",
            10,
            "read-only",
            "set default_transaction_read_only = off; alter database",
        ),
        (
            "another password",
            "alter role simgen_app password 'another'",
            "alter role simgen_app password 'lab-app'",
            12,
            "endpoint",
            "password authentication failed",
        ),
    ] {
        stack.psql(harm).unwrap();
        stack.psql(ends).unwrap();
        let seen = general(&stack);
        stack.psql(mend).unwrap();
        stack.psql(ends).unwrap();
        assert_eq!(
            (seen.0, seen.1.as_str()),
            (Some(code), name),
            "{what}: {}",
            seen.2
        );
        assert!(seen.2.contains(says), "{what}: {}", seen.2);
        stack.wait_healthy();
    }
    let (code, name, all) = general(&stack);
    assert_eq!((code, name.as_str()), (Some(0), ""), "{all}");
}
