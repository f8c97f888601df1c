"""How the texts begin that the built-in model writes itself: kinds of text, everyday sentences in many languages."""

from __future__ import annotations

OPENINGS = """
The history of the|A short guide to|In the city of|She opened the door and|He had never seen such|My grandmother used to
The government announced on|Scientists have found that|According to a new|The company said that|Once upon a time there
It was a cold night|Dear Sir or Madam|To make the soup you|Preheat the oven to|The patient was given a
In mathematics, a group is|The theorem says that|Let x be a number|The chemical formula of|Water boils at
The river flows through|The capital of France is|The island lies in the|During the Second World War|In the 19th century
The football team won|The singer released her|The film tells the story|The bird is a species|The cell membrane is
How do I install the|Question: What is the|Answer: The reason is|I love this product because
This book was a disappointment
The court held that the|Article 1. All human|The contract shall be|The stock market fell by|Interest rates are expected
def read_file(path):|import numpy as np|for (int i = 0;|SELECT name FROM users|function render(props) {
<div class="container">|#include <stdio.h>|public static void main|{"name": "John",|$ git commit -m
The teacher asked the children|"Where are you going?"|Roses are red,|And God said unto|The bus leaves at 7:45
List of countries by|Name, age, city, phone|1. First, open the|Monday, Tuesday,|Happy birthday to you
The moon is about|The doctor told him to|Her mother was born in|The king and the queen|The cat sat on the
I am so angry that|We are very happy to|He was sad because the|She laughed and said,|They were afraid of the
Le gouvernement a annoncé|Il était une fois|La ville de Paris est|El presidente dijo que|En un lugar de la
La casa es muy|Die Stadt liegt am|Der Hund lief schnell|Es war einmal ein|Il presidente della
La mia famiglia vive|O governo do Brasil|A cidade de Lisboa|De stad ligt aan|Het weer is vandaag
Это было в начале|Город расположен на берегу|Я люблю читать книги|今天的天气很好，我们|中国的首都是北京
科学家发现了一种新的|从前有一个小男孩|日本の首都は東京で|私は毎朝コーヒーを|彼女は学校へ行って
한국의 수도는 서울이며|오늘은 날씨가 좋아서
भारत की राजधानी नई दिल्ली|मैं हर सुबह चाय|عاصمة مصر هي القاهرة
كان يا ما كان في|Türkiye'nin başkenti Ankara|Bugün hava çok güzel|Stolicą Polski jest Warszawa
Dzisiaj jest piękna pogoda
Hà Nội là thủ đô|Ibu kota Indonesia adalah|Η Αθήνα είναι η πρωτεύουσα|Hlavní město je Praha|Huvudstaden i Sverige är
The recipe needs two cups|The dog barked at|The car would not start|The experiment showed a|The equation can be written
Police arrested a man|The election results were|The church was built in|The museum has a|Mount Everest is the
""".strip().replace("\n", "|").split("|")  # fmt: skip

# Each has at least three tokens.
SPOKEN = {
    "Hindi": """
मैं हर सुबह उठकर|भारत की राजधानी नई|मेरी माँ ने कहा कि|यह किताब बहुत अच्छी|बच्चे स्कूल जा रहे
आज मौसम बहुत सुहावना|एक समय की बात है|सरकार ने घोषणा की|गाँव के लोग खेतों
डॉक्टर ने मरीज़ को|हमारा देश स्वतंत्र|वह बाज़ार से सब्ज़ी|फ़िल्म के निर्देशक ने|पानी पीना सेहत के
किसान अपनी फसल|क्रिकेट मैच में भारतीय|मुझे संगीत सुनना पसंद
""",
    "Arabic": """
ذهب الولد إلى المدرسة|كان يا ما كان في|عاصمة مصر هي القاهرة|قالت الحكومة إن|أحب أن أقرأ الكتب
الطقس اليوم جميل جدا|تقع المدينة على|في عام 1990 بدأ|أعلن الرئيس عن|هذا الكتاب يتحدث عن
الطعام في هذا المطعم|يشرب الناس القهوة في|كرة القدم هي أكثر|العلماء اكتشفوا أن
بسم الله الرحمن الرحيم
""",
    "Vietnamese": """
Hôm nay trời rất đẹp|Mẹ tôi thường nấu|Thành phố Hồ Chí Minh|Ngày xửa ngày xưa có
Chính phủ đã công bố|Tôi thích đọc sách vào|Món ăn này được làm|Các nhà khoa học cho biết
Đội tuyển bóng đá|Em bé đang chơi với|Công ty cung cấp dịch vụ
Trong cuộc sống hàng ngày|Việt Nam là một nước
""",
    "Spanish": """
El presidente dijo que|Había una vez un|Mi madre siempre me
El tiempo de hoy es|La receta lleva dos|Los científicos han descubierto|La ciudad está situada
El equipo ganó el partido|Me gusta mucho leer|En el año 1810|La empresa anunció que
¿Cómo puedo instalar|Los niños juegan en
""",
    "Chinese": """
今天的天气很好，我们|中国的首都是北京|从前有一个小男孩|科学家发现了一种新的
我喜欢在早上喝咖啡|公司宣布将在明年|这本书讲述了一个|孩子们在学校里学习|足球比赛昨天晚上
这道菜的做法是|政府表示，今年的|人工智能技术正在|她打开门，看见
""",
    "Japanese": """
私は毎朝コーヒーを|日本の首都は東京で|昔々、あるところに|彼女は学校へ行って
政府は昨日、新しい|この本はとても面白い|今日は天気がいいので|科学者たちは新しい
試合は三対二で|レシピ：まず玉ねぎを|東京駅から電車で
""",
    "Korean": """
오늘은 날씨가 좋아서|한국의 수도는 서울이며|나는 매일 아침 커피를
옛날 옛적에 한 마을에|정부는 어제 새로운|이 책은 매우 재미있는
아이들이 학교에서 공부를
과학자들은 새로운 연구를|축구 경기에서 우리 팀이
""",
    "Russian": """
Это было в начале|Город расположен на берегу|Я люблю читать книги
Правительство объявило о|Жили-были старик и|Сегодня хорошая погода и|Учёные обнаружили, что
Мама сказала мне, что|Команда выиграла матч со
""",
    "German": """
Es war einmal ein|Die Stadt liegt am|Der Hund lief schnell|Das Wetter ist heute
Die Regierung hat gestern|Ich lese gern Bücher|Forscher haben herausgefunden, dass
Die Mannschaft gewann das|Für das Rezept braucht
""",
    "French": """
Il était une fois|Le gouvernement a annoncé|La ville de Paris est
Aujourd'hui il fait très|J'aime beaucoup lire des|Les chercheurs ont découvert|L'équipe a gagné le
Ma mère m'a dit|La recette demande deux
""",
    "Portuguese": """
Era uma vez um|O governo do Brasil|A cidade de Lisboa|O tempo hoje está
Eu gosto muito de|Os cientistas descobriram que|A equipe venceu o
""",
    "Italian": """
C'era una volta un|Il governo ha annunciato|La mia famiglia vive
Oggi il tempo è|Mi piace molto leggere|Gli scienziati hanno scoperto|La squadra ha vinto
""",
    "Indonesian": """
Pada suatu hari ada|Pemerintah mengumumkan bahwa|Ibu kota Indonesia adalah
Hari ini cuaca sangat|Saya suka membaca buku|Para ilmuwan menemukan bahwa|Anak-anak bermain di
""",
    "Turkish": """
Bir varmış bir yokmuş|Hükümet dün yaptığı|Türkiye'nin başkenti Ankara
Bugün hava çok güzel|Kitap okumayı çok|Bilim insanları yeni|Takım maçı üç
""",
    "Polish": """
Dawno, dawno temu żył|Rząd ogłosił, że w|Stolicą Polski jest Warszawa
Dzisiaj jest piękna pogoda|Bardzo lubię czytać książki|Naukowcy odkryli, że|Drużyna wygrała mecz
""",
    "Thai": """
วันนี้อากาศดีมาก|ประเทศไทยมีเมืองหลวง|ฉันชอบอ่านหนังสือ|กาลครั้งหนึ่งนานมาแล้ว|รัฐบาลประกาศว่า
นักวิทยาศาสตร์ค้นพบ
""",
    "Bengali": """
আজ আবহাওয়া খুব ভালো|বাংলাদেশের রাজধানী ঢাকা|আমি প্রতিদিন সকালে|এক গ্রামে এক কৃষক|সরকার ঘোষণা করেছে
বিজ্ঞানীরা আবিষ্কার করেছেন
""",
    "Tamil": """
இன்று வானிலை மிகவும்|தமிழ்நாட்டின் தலைநகரம்|நான் தினமும் காலையில்|ஒரு ஊரில் ஒரு|அரசு அறிவித்துள்ளது
விஞ்ஞானிகள் கண்டுபிடித்துள்ளனர்
""",
    "Persian": """
امروز هوا خیلی خوب|پایتخت ایران تهران|من هر روز صبح|یکی بود یکی نبود|دولت اعلام کرد که
دانشمندان کشف کردند
""",
    "Hebrew": """
היום מזג האוויר יפה|בירת ישראל היא ירושלים|אני אוהב לקרוא ספרים|היה היה פעם מלך|הממשלה הודיעה כי
מדענים גילו כי
""",
    "Ukrainian": """
Сьогодні дуже гарна погода|Столиця України — місто|Я люблю читати книжки|Жили собі дід та
Уряд оголосив про|Вчені виявили, що
""",
    "Greek": """
Σήμερα ο καιρός είναι|Η Αθήνα είναι η πρωτεύουσα|Μου αρέσει να διαβάζω|Μια φορά κι έναν
Η κυβέρνηση ανακοίνωσε ότι|Οι επιστήμονες ανακάλυψαν
""",
    "Dutch": """
Er was eens een|De regering heeft aangekondigd|De stad ligt aan
Het weer is vandaag|Ik lees graag boeken
""",
    "Swedish": """
Det var en gång|Regeringen meddelade att|Huvudstaden i Sverige är
Vädret är fint idag|Jag tycker om att
""",
}  # fmt: skip
SPOKEN = {name: some.strip().replace("\n", "|").split("|") for name, some in SPOKEN.items()}
