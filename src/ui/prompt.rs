//! Questions to the operator. Standard error carries the question, so that standard output
//! stays data.

use std::io::{BufRead, IsTerminal};

use crate::engine::Ask;

/// The person at the terminal, if there is one.
#[derive(Debug)]
pub struct Terminal;

impl Ask for Terminal {
    fn is_possible(&self) -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    fn ask(&self, question: &str) -> Option<String> {
        super::on_stderr(question);
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => {
                super::talk("");
                None
            }
            Ok(_) => Some(line),
        }
    }
}
