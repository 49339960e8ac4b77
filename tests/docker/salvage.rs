//! No backup at all: what can be read is kept, what cannot is named before and after, and an undo brings the old
//! state back.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::stack::Stack;

const ORDERS: &str = "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; \
                      select id from orders where note is distinct from 'drctl check' order by id";
/// Lines whose order is not there: they would break every restore of a dump.
const ORPHANS: &str =
    "select count(*) from order_lines l where not exists (select from orders o where o.id = l.order_id)";
const SET_ASIDE: &str = "select count(*) from drctl_set_aside.public_order_lines";
/// More than the rows that one page of orders can hold.
const A_PAGE: usize = 200;

#[test]
fn without_a_backup_what_can_be_read_is_kept() {
    let Some(stack) = Stack::up("salvage") else { return };
    let began = Instant::now();
    control_file(&stack);
    eprintln!("pg-control: {:.1} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    heap_page(&stack);
    eprintln!("heap-page: {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(stack.leftovers_after(Duration::from_secs(5)), "");
    assert_eq!(stack.set_aside(), "");
}

/// The plan, after it was seen to be made for the lack of a backup and to refuse to go on by `--yes` alone.
fn plan(stack: &Stack) -> Value {
    let out = stack.drctl(&["recover", "db-corruption", "--yes", "--json"]);
    assert_eq!(out.code, Some(4), "{}{}", out.stdout, out.stderr);
    let plan = out.event("plan")["plan"].clone();
    assert_eq!(plan["remedy"], "salvage", "{plan}");
    let others = plan["alternatives"].as_array().unwrap();
    assert!(
        !others.is_empty()
            && others.iter().all(|a| a["possible"] == false
                && a["why-not"].as_str().unwrap().contains("no usable backup")
                || a["why-not"].as_str().unwrap().contains("takes no connections")),
        "{others:?}"
    );
    assert_eq!(plan["data-loss"]["none"], false);
    plan
}

/// Recovers, proven; gives the incident and what it says that it lost.
fn recovered(stack: &Stack) -> (String, String) {
    let out = stack.agreed(&["recover", "db-corruption"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    let report = out.event("report")["report"].clone();
    assert_eq!(report["outcome"], "verified", "{report}");
    let warnings = out.events().into_iter().filter(|e| e["event"] == "warning");
    let said = warnings.map(|w| w["text"].as_str().unwrap().to_owned() + "\n");
    (report["incident"].as_str().unwrap().to_owned(), said.collect())
}

fn ended(stack: &Stack, verb: &str, incident: &str) {
    let out = stack.agreed(&["incident", verb, incident]);
    assert_eq!(out.code, Some(0), "{verb}: {}{}", out.stdout, out.stderr);
}

fn forget(stack: &Stack) {
    stack.drctl(&["drill", "heal"]).ok();
    stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
    stack.wait_healthy();
}

/// All that is lost is a pointer into the log: the log itself is there, and nothing that was acknowledged is gone.
fn control_file(stack: &Stack) {
    let identity = "select system_identifier from pg_control_system()";
    let before = stack.psql(identity).unwrap();
    let traffic = stack.traffic();
    std::thread::sleep(Duration::from_secs(2));
    stack.drctl(&["drill", "inject", "db-corruption/pg-control"]).ok();
    let loss = plan(stack)["data-loss"]["summary"].as_str().unwrap().to_owned();
    assert!(loss.contains("write-ahead log"), "{loss}");
    let (incident, lost) = recovered(stack);
    assert_eq!(lost, "", "nothing had to be lost");
    stack.wait_healthy();
    let told = traffic.finish();
    assert!(told.count > 10, "{told:?}");
    assert_eq!(told.lost, [0_i64; 0], "acknowledged orders are lost");
    assert_eq!(
        stack.psql(identity).unwrap(),
        before,
        "older backups would no longer fit"
    );
    assert_eq!(stack.psql("show data_checksums").unwrap(), "on");

    let since = jiff::Timestamp::now();
    ended(stack, "undo", &incident);
    let end = Instant::now() + Duration::from_secs(20);
    while !stack
        .logs("postgres", since)
        .contains("incorrect checksum in control file")
    {
        assert!(Instant::now() < end, "{}", stack.logs("postgres", since));
        std::thread::sleep(Duration::from_millis(200));
    }
    ended(stack, "close", &incident);
    forget(stack);
}

/// One page is gone, and with it what refers to its rows. Nothing else is.
fn heap_page(stack: &Stack) {
    let ids = |rows: &str| rows.lines().map(str::to_owned).collect::<Vec<_>>();
    let before = ids(&stack.psql(ORDERS).unwrap());
    let lines: usize = stack
        .psql("select count(*) from order_lines")
        .unwrap()
        .parse()
        .unwrap();
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    let damage = stack.psql(ORDERS).unwrap_err();
    let loss = plan(stack)["data-loss"]["summary"].as_str().unwrap().to_owned();
    assert!(loss.contains("1 page of public.orders"), "{loss}");
    let (incident, lost) = recovered(stack);
    assert!(
        lost.contains("public.orders of simgen: the rows of 1 damaged page are lost"),
        "{lost}"
    );
    let after = ids(&stack.psql(ORDERS).unwrap());
    let kept: std::collections::HashSet<_> = after.iter().collect();
    let gone = before.iter().filter(|id| !kept.contains(id)).count();
    assert!(
        (1..A_PAGE).contains(&gone),
        "{gone} of {} orders are lost",
        before.len()
    );
    assert!(after.len() + gone >= before.len());
    assert_eq!(stack.psql(ORPHANS).unwrap(), "0");
    let aside: usize = stack.psql(SET_ASIDE).unwrap().parse().unwrap();
    let left: usize = stack
        .psql("select count(*) from order_lines l where exists (select from orders o where o.id = l.order_id and o.note is distinct from 'drctl check')")
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        aside > 0 && left + aside >= lines,
        "{left} + {aside} of {lines} lines"
    );
    stack
        .psql("select bt_index_check(i.indexrelid, true) from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relnamespace = 'public'::regnamespace")
        .unwrap();
    eprintln!(
        "heap-page: {gone} of {} orders lost, {aside} lines set aside",
        before.len()
    );

    ended(stack, "undo", &incident);
    stack.wait_healthy();
    // The very same damage, and no more: a damaged page names itself.
    let page = |e: &str| e.split("of relation").next().unwrap_or_default().to_owned();
    assert_eq!(page(&stack.psql(ORDERS).unwrap_err()), page(&damage));
    assert!(stack.psql(SET_ASIDE).unwrap_err().contains("does not exist"));
    ended(stack, "close", &incident);
    forget(stack);
    assert_eq!(ids(&stack.psql(ORDERS).unwrap()), before);
}
