//! Arithmetic in the number of a layer: `0.2 + 0.6 * sin(pi * t)`.

/// A tensor's place in the stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Layer of the result, from 0.
    pub(super) layer: u64,
    /// Layers of the result.
    pub(super) layers: u64,
    /// From 0 in the first layer of the slice to 1 in the last.
    pub(super) t: f64,
}

/// An expression that has been understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Number(f64),
    Layer,
    Layers,
    T,
    Negative(Box<Self>),
    Pair(Operator, Box<(Self, Self)>),
    Call(Function, Box<Self>),
    Extreme(Extreme, Box<(Self, Self)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Plus,
    Minus,
    Times,
    Over,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Abs,
    Cos,
    Exp,
    Floor,
    Sin,
    Sqrt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extreme {
    Least,
    Most,
}

/// Brackets and signs within one another: more than anyone writes, less than a stack holds.
const DEEPEST: u32 = 32;

const NAMES: &str = "layer, layers, t, pi; abs, cos, exp, floor, max, min, sin, sqrt";

impl Expression {
    /// Understands a text.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { text, at: 0, depth: 0 };
        let found = reader.sum()?;
        match reader.peek() {
            None => Ok(found),
            Some(rest) => Err(format!("has an unexpected `{rest}` at {}", reader.at + 1)),
        }
    }

    /// The value at a place. Functions are in software, so that it has the same bits everywhere.
    #[expect(clippy::cast_precision_loss, reason = "layer counts are small")]
    pub(super) fn at(&self, place: Place) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Layer => place.layer as f64,
            Self::Layers => place.layers as f64,
            Self::T => place.t,
            Self::Negative(of) => -of.at(place),
            Self::Pair(operator, pair) => {
                let (a, b) = (pair.0.at(place), pair.1.at(place));
                match operator {
                    Operator::Plus => a + b,
                    Operator::Minus => a - b,
                    Operator::Times => a * b,
                    Operator::Over => a / b,
                    Operator::Power => libm::pow(a, b),
                }
            }
            Self::Call(function, of) => {
                let x = of.at(place);
                match function {
                    Function::Abs => x.abs(),
                    Function::Cos => libm::cos(x),
                    Function::Exp => libm::exp(x),
                    Function::Floor => x.floor(),
                    Function::Sin => libm::sin(x),
                    Function::Sqrt => x.sqrt(),
                }
            }
            Self::Extreme(extreme, pair) => {
                let (a, b) = (pair.0.at(place), pair.1.at(place));
                match extreme {
                    Extreme::Least => a.min(b),
                    Extreme::Most => a.max(b),
                }
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl Reader<'_> {
    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        let rest = self.text.get(self.at..)?;
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed.chars().next()
    }

    fn takes(&mut self, wanted: char) -> bool {
        let takes = self.peek() == Some(wanted);
        if takes {
            self.at += wanted.len_utf8();
        }
        takes
    }

    fn must(&mut self, wanted: char) -> Result<(), String> {
        if self.takes(wanted) {
            Ok(())
        } else {
            Err(format!("lacks a `{wanted}` at {}", self.at + 1))
        }
    }

    fn pair(operator: Operator, a: Expression, b: Expression) -> Expression {
        Expression::Pair(operator, Box::new((a, b)))
    }

    fn sum(&mut self) -> Result<Expression, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("is too deep".into());
        }
        let mut found = self.product()?;
        loop {
            let operator = if self.takes('+') {
                Operator::Plus
            } else if self.takes('-') {
                Operator::Minus
            } else {
                self.depth -= 1;
                return Ok(found);
            };
            found = Self::pair(operator, found, self.product()?);
        }
    }

    fn product(&mut self) -> Result<Expression, String> {
        let mut found = self.signed()?;
        loop {
            let operator = if self.takes('*') {
                Operator::Times
            } else if self.takes('/') {
                Operator::Over
            } else {
                return Ok(found);
            };
            found = Self::pair(operator, found, self.signed()?);
        }
    }

    /// `-2^2` is `-(2^2)`.
    fn signed(&mut self) -> Result<Expression, String> {
        if !self.takes('-') {
            return self.power();
        }
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("is too deep".into());
        }
        let found = self.signed()?;
        self.depth -= 1;
        Ok(Expression::Negative(Box::new(found)))
    }

    fn power(&mut self) -> Result<Expression, String> {
        let found = self.atom()?;
        if !self.takes('^') {
            return Ok(found);
        }
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("is too deep".into());
        }
        let exponent = self.signed()?;
        self.depth -= 1;
        Ok(Self::pair(Operator::Power, found, exponent))
    }

    fn atom(&mut self) -> Result<Expression, String> {
        if self.takes('(') {
            let found = self.sum()?;
            self.must(')')?;
            return Ok(found);
        }
        let Some(first) = self.peek() else { return Err("ends too early".into()) };
        if first.is_ascii_digit() || first == '.' {
            let number = self.take(|c| c.is_ascii_digit() || c == '.');
            let parsed = number.parse().map(Expression::Number);
            return parsed.map_err(|_| format!("has `{number}`, which is no number"));
        }
        let name = self.take(|c| c.is_ascii_alphabetic());
        let function = match name {
            "" => return Err(format!("has an unexpected `{first}` at {}", self.at + 1)),
            "layer" => return Ok(Expression::Layer),
            "layers" => return Ok(Expression::Layers),
            "t" => return Ok(Expression::T),
            "pi" => return Ok(Expression::Number(std::f64::consts::PI)),
            "min" => return self.extreme(Extreme::Least),
            "max" => return self.extreme(Extreme::Most),
            "abs" => Function::Abs,
            "cos" => Function::Cos,
            "exp" => Function::Exp,
            "floor" => Function::Floor,
            "sin" => Function::Sin,
            "sqrt" => Function::Sqrt,
            _ => return Err(format!("has `{name}`, which is not known (known: {NAMES})")),
        };
        self.must('(')?;
        let found = self.sum()?;
        self.must(')')?;
        Ok(Expression::Call(function, Box::new(found)))
    }

    fn extreme(&mut self, extreme: Extreme) -> Result<Expression, String> {
        self.must('(')?;
        let first = self.sum()?;
        self.must(',')?;
        let second = self.sum()?;
        self.must(')')?;
        Ok(Expression::Extreme(extreme, Box::new((first, second))))
    }

    fn take(&mut self, wanted: fn(char) -> bool) -> &str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_has_the_usual_order() {
        let place = Place { layer: 3, layers: 8, t: 0.25 };
        for (text, wanted) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("8 / 2 / 2", 2.0),
            ("8 - 2 - 2", 4.0),
            ("-2^2", -4.0),
            ("2^3^2", 512.0),
            ("2^-1", 0.5),
            ("layer / layers", 0.375),
            ("0.5 * t", 0.125),
            ("max(t, 0.5) - min(layer, 1)", -0.5),
            ("abs(-3) + sqrt(16) + floor(1.5)", 8.0),
            ("cos(0) + exp(0) + sin(0)", 2.0),
            (" .5+1. ", 1.5),
        ] {
            assert_eq!(Expression::parse(text).map(|found| found.at(place)), Ok(wanted), "{text}");
        }
        let half = Expression::parse("sin(pi / 2)").unwrap().at(place);
        assert!((half - 1.0).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_expression_is_told() {
        for (text, words) in [
            ("", "ends too early"),
            ("1 +", "ends too early"),
            ("1 2", "unexpected `2` at 3"),
            ("(1", "lacks a `)` at 3"),
            ("1.2.3", "`1.2.3`, which is no number"),
            ("lyer", "`lyer`, which is not known (known: layer"),
            ("sin 1", "lacks a `(` at 5"),
            ("min(1)", "lacks a `,` at 6"),
            ("é", "unexpected `é` at 1"),
            (&"(".repeat(1000), "too deep"),
            (&"-".repeat(1000), "too deep"),
            (&"2^".repeat(1000), "too deep"),
        ] {
            let told = Expression::parse(text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }
}
