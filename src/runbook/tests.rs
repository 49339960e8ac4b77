//! Bad runbooks and what is said about them.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

pub(super) const GOOD: &str = "\
version: 1
deployment: shop
environment: staging
platform:
  docker: {}
objectives: { rto: 2h, rpo: 24h }
services:
  db:
    kind: postgres
    postgres:
      admin-user: postgres
      databases:
        shop: {}
  web:
    kind: app
    depends-on: [db]
backup:
  directory: /var/backups/drctl/shop
";

fn parse_text(text: &str) -> Result<Runbook, Invalid> {
    parse(Path::new("drctl.yaml"), text)
}

#[test]
fn dump() {
    let bad = "version: 2\ndeploymnt: Shop\nenvironment: prod\nplatform: {docker: {host: 'ssh://x'}, k8s: {}}\nobjectives: { rto: 2, rot: 5x }\nservices:\n  db:\n    kind: postgre\n    depends-on: [web, we]\n    postgres:\n      admin-user: 5\n      password: hunter2\n      databases:\n        shop: {tables: {a.b.c: {newest: }, orders: {}, public.orders: {}}}\n  web:\n    kind: app\n    kind: redis\n    depends-on: [db]\nendpoints:\n  h: {url: 'localhost:80', timeout: 5d}\nbackup: []\n";
    println!("{}", parse_text(bad).unwrap_err());
    for text in ["a: [", "a: b: c", "\tx: 1", "- 1", "", "# x\n", "---\na: 1\n---\nb: 2\n", "? [a]\n: b\n", "a: *x", &"[".repeat(20000), "a: .inf", "a: 1e999", "1: x\n1: y\n", "a: &a [1,1]\nb: *a", "foo", "\0", "a: 99999999999999999999999999999999999999999999999"] {
        println!("---- {:?}\n{}", text.chars().take(30).collect::<String>(), parse_text(text).unwrap_err().problems[0]);
    }
    println!("{}", render(&parse_text(GOOD).unwrap()));
    println!("{}", schema());
    let t = Instant::now(); let _ = Duration::ZERO;
    let _ = parse_text(GOOD); println!("{:?}", t.elapsed());
}
