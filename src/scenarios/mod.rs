//! One module per failure. Each reads like the page of the guide it replaces: what is
//! observed, what it means, what is done about it.

pub mod db_corruption;
